"""Recording a served run's interleaving, in the launcher: what workers tell, and what the shards answered."""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from leptonai.launch.served_memory import ServedMemory
from leptonai.training.optimizers import Optimizer
from leptonai.training.parameter_server.flat import TensorSpec
from leptonai.training.parameter_server.interleaving import (
    Applied,
    Began,
    Computed,
    Ended,
    InterleavingWriter,
    pull_from_json,
    shard_digest,
    versions_applied,
)
from leptonai.training.parameter_server.memory import Header, Slot
from leptonai.training.parameter_server.work import Apply, Compute, Member

FILE_NAME = "interleaving.jsonl"


class Recorder:
    """Writes ``interleaving.jsonl`` while the run goes on.

    Args:
        identity: of the job, as text.
    """

    def __init__(
        self,
        run_dir: Path,
        memory: ServedMemory,
        *,
        identity: str,
        tensors: Sequence[TensorSpec],
        optimizer: Optimizer,
        versions: Sequence[str],
    ) -> None:
        self._path, self._memory, self._identity = run_dir / FILE_NAME, memory, identity
        self._tensors, self._optimizer, self._environment = tensors, optimizer, tuple(versions)
        self._writer: InterleavingWriter | None = None
        self._processes: Counter[int] = Counter()

    def begin(self, kernels: str) -> None:
        """The first parameters are written and nothing was applied yet."""
        shards = self._memory.shards
        began = Began(
            job=self._identity, tensors=tuple(self._tensors),
            lengths=tuple(shard.shape.num_elements for shard in shards),
            chunk_elements=shards[0].shape.chunk_elements, num_slots=shards[0].shape.num_slots,
            optimizer=repr(self._optimizer), kernels=kernels, versions=self._versions(),
            digests=tuple(shard_digest(shard) for shard in shards), environment=self._environment,
        )  # fmt: skip
        self._writer = InterleavingWriter(self._path, began)

    def joined(self, rank: int) -> None:
        """A process takes up a rank."""
        self._processes[rank] += 1

    def computed(self, deal: Compute, told: Mapping[str, Any]) -> None:
        """A worker is about to push."""
        self._write(
            Computed(
                deal=deal, incarnation=self._processes[deal.worker] - 1,
                pulls=tuple(pull_from_json(pull) for pull in told["pulls"]),
                pushed=told["pushed"], checksums=tuple(told["checksums"]),
            )
        )  # fmt: skip

    def applied(self, deal: Compute) -> None:
        """Every shard has answered a push that was applied as it came."""
        member = Member(worker=deal.worker, sequence=deal.deal, weight=1.0)
        self._write(Applied(members=(member,), versions=self._answered([member])))

    def group_applied(self, decision: Apply, lr: float) -> None:
        """Every shard has applied a group."""
        self._write(
            Applied(
                members=decision.members, versions=self._answered(decision.members), lr=lr, grouped=True,
                fragment=decision.fragment, fragments=decision.fragments,
            )
        )  # fmt: skip

    def end(self) -> None:
        """Nothing comes any more."""
        digests = tuple(shard_digest(shard) for shard in self._memory.shards)
        self._write(Ended(digests=digests, versions=self._versions()))
        self.close()

    def close(self) -> None:
        """Give the file up; without :meth:`end` before, the record says that the run broke off."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _answered(self, members: Sequence[Member]) -> tuple[int, ...]:
        # A worker is dealt nothing new before this, so its slot still holds this answer.
        answers = []
        for shard in self._memory.shards:
            slots = [shard.slots[member.worker] for member in members]
            answers.append([(int(slot[Slot.VERDICT]), int(slot[Slot.VERSION])) for slot in slots])
        return versions_applied(answers)

    def _versions(self) -> tuple[int, ...]:
        return tuple(int(shard.header[Header.VERSION]) for shard in self._memory.shards)

    def _write(self, line: Computed | Applied | Ended) -> None:
        if self._writer is not None:
            self._writer.write(line)


def environment_words(framework: str) -> list[str]:
    """What computes, by name and version, to explain a difference later."""
    from importlib.metadata import version

    names = ["torch"] if framework == "pytorch" else ["tensorflow-cpu", "keras", "torch"]
    found = [f"numpy {np.__version__}", f"machine {platform.machine()}"]
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except ModuleNotFoundError:
            continue
    return found
