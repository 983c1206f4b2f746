"""The record of an asynchronous run: who read what, computed what, and in which order it was applied.

Everything else follows from the job. A worker's pull is described by the version of every chunk it copied,
each shard numbers the updates it applies; so together they say which numbers each gradient was computed from,
whatever the clocks of the machines said. :mod:`~leptonai.training.parameter_server.replay` runs it again.

The file is JSON lines: a header, then a line for each deal a worker computed and for each update applied, in
any order, and at the end of the run its digests. Lines are flushed as they are written; one that a crash
tore off at the end is left out when reading.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import Fault, InputError
from leptonai.core.values import value_from_json, value_to_json
from leptonai.training.parameter_server.flat import TensorSpec
from leptonai.training.parameter_server.memory import APPLIED, Header, ShardMemory
from leptonai.training.parameter_server.work import Compute, Member, compute_from_json, compute_to_json

FORMAT = 1
Runs = tuple[tuple[int, int], ...]
"""Numbers as runs of equal ones: (number, how many)."""
Pull = tuple[Runs, ...]
"""The chunk versions of one pull, shard by shard."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Began:
    """What the run began with.

    Args:
        job: its identity.
        tensors: the model's, in order.
        lengths: elements of each shard.
        chunk_elements: parameters under one version.
        num_slots: workers a shard serves.
        optimizer, kernels: what the servers step with, and how; other kernels round otherwise.
        versions: updates each shard had behind it.
        digests: of each shard, by :func:`shard_digest`.
        environment: versions of what computes, to explain a difference.
    """

    job: str
    tensors: tuple[TensorSpec, ...]
    lengths: tuple[int, ...]
    chunk_elements: int
    num_slots: int
    optimizer: str
    kernels: str
    versions: tuple[int, ...]
    digests: tuple[str, ...]
    environment: tuple[str, ...] = ()
    format: int = FORMAT


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """A deal that a worker computed.

    Args:
        deal: what it was dealt; the push has its number as ``sequence``.
        incarnation: processes this worker had had before, each beginning with a fresh model.
        pulls: what it read on the way, in order.
        pushed: whether a push came of it; not when it was not finite.
        checksums: CRC-32 of what was offered to each shard, as bytes; empty: not taken.
    """

    deal: Compute
    incarnation: int
    pulls: tuple[Pull, ...]
    pushed: bool = True
    checksums: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What became of a push, or of several that were applied as one update.

    A push that nothing is said of was dropped.

    Args:
        members: in the order they were summed; one for a push applied as it came.
        versions: of each shard after the update; 0 where nothing was applied (all refused or dropped).
        lr: of a group; a push applied as it came brings its own.
        grouped: whether it was a group, even of one.
        dropped: it came too late; nothing was applied.
        fragment, fragments: which part of the weights it concerned.
    """

    members: tuple[Member, ...]
    versions: tuple[int, ...]
    lr: float = 0.0
    grouped: bool = False
    dropped: bool = False
    fragment: int = 0
    fragments: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """What the run ended with: digests and versions of each shard."""

    digests: tuple[str, ...]
    versions: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A record as read; ``ended`` is None when the run broke off."""

    began: Began
    computed: tuple[Computed, ...]
    applied: tuple[Applied, ...]
    ended: Ended | None


def versions_applied(answers: Sequence[Sequence[tuple[int, int]]]) -> tuple[int, ...]:
    """:attr:`Applied.versions` from what the shards answered.

    Args:
        answers: for each shard, of each member: (verdict, version).

    >>> versions_applied([[(APPLIED, 7)], [(3, 4)]])
    (7, 0)
    """
    return tuple(next((version for verdict, version in shard if verdict == APPLIED), 0) for shard in answers)


Line = Began | Computed | Applied | Ended
_KINDS: dict[str, type[Line]] = {"began": Began, "computed": Computed, "applied": Applied, "ended": Ended}


class InterleavingWriter:
    """Appends to ``path``; one process writes.

    Raises:
        Fault: the file cannot be made, or later not be written.
    """

    def __init__(self, path: Path, began: Began) -> None:
        self._path = path
        try:
            self._file: IO[str] = path.open("x", encoding="utf-8")
        except OSError as error:
            raise Fault(f"{path}: the interleaving cannot be recorded: {error}") from error
        self.write(began)

    def write(self, line: Line) -> None:
        """Add a line; from then on it survives this process."""
        try:
            self._file.write(line_text(line) + "\n")
            self._file.flush()
        except OSError as error:
            raise Fault(f"{self._path}: the interleaving cannot be recorded: {error}") from error

    def close(self) -> None:
        """No more comes."""
        self._file.close()


def line_text(line: Line) -> str:
    """One value as JSON.

    >>> line_text(Ended(digests=("ab",), versions=(3,)))
    '{"kind":"ended","digests":["ab"],"versions":[3]}'
    """
    kind = next(name for name, known in _KINDS.items() if known is type(line))
    if isinstance(line, Computed):
        values: dict[str, Any] = {
            "deal": compute_to_json(line.deal), "incarnation": line.incarnation, "pulls": line.pulls,
            "pushed": line.pushed, "checksums": line.checksums,
        }  # fmt: skip
    else:
        values = value_to_json(line)
    return json.dumps({"kind": kind, **values}, separators=(",", ":"))


def read_interleaving(path: Path) -> Recording:
    """A record from its file.

    Raises:
        InputError: there is none, or it is in a newer format.
        Fault: a line in the middle is damaged.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"{path}: no interleaving to read: {error}", hint="record one with ParameterServer(record=True)"
        ) from error
    # What follows the last line break was torn off in writing; usually it is empty.
    return recording_of(_line(path, number, text) for number, text in enumerate(lines[:-1], start=1))


def recording_of(lines: Iterable[Line]) -> Recording:
    """Lines in the order they were written, as one value. Raises InputError without a header."""
    found = list(lines)
    if not found or not isinstance(found[0], Began):
        raise InputError("the interleaving has no header: nothing was recorded")
    if found[0].format != FORMAT:
        raise InputError(f"the interleaving has format {found[0].format}, this version reads {FORMAT}")
    return Recording(
        began=found[0],
        computed=tuple(line for line in found if isinstance(line, Computed)),
        applied=tuple(line for line in found if isinstance(line, Applied)),
        ended=next((line for line in found if isinstance(line, Ended)), None),
    )


def _line(path: Path, number: int, text: str) -> Line:
    try:
        values = json.loads(text)
        kind = _KINDS[values["kind"]]
        return _computed(values) if kind is Computed else value_from_json(kind, values)
    except (ValueError, KeyError, TypeError, AttributeError, InputError) as error:
        raise Fault(f"{path}:{number}: the interleaving is damaged: {error}") from error


def _computed(values: Mapping[str, Any]) -> Computed:
    return Computed(
        deal=compute_from_json(values["deal"]),
        incarnation=int(values["incarnation"]),
        pulls=tuple(pull_from_json(pull) for pull in values["pulls"]),
        pushed=bool(values["pushed"]),
        checksums=tuple(int(each) for each in values["checksums"]),
    )


def pull_from_json(values: Sequence[Sequence[Sequence[int]]]) -> Pull:
    """A pull as a worker tells of it.

    >>> pull_from_json([[[4, 2], [5, 1]]])
    (((4, 2), (5, 1)),)
    """
    return tuple(tuple((int(version), int(count)) for version, count in runs) for runs in values)


def encode_runs(values: NDArray[np.uint64]) -> Runs:
    """Runs of equal numbers.

    >>> encode_runs(np.array([4, 4, 5], np.uint64))
    ((4, 2), (5, 1))
    """
    if not len(values):
        return ()
    starts = np.concatenate([[0], np.flatnonzero(values[1:] != values[:-1]) + 1])
    counts = np.diff(starts, append=len(values))
    return tuple(zip(values[starts].tolist(), counts.tolist(), strict=True))


def decode_runs(runs: Runs) -> NDArray[np.uint64]:
    """Inverse of :func:`encode_runs`.

    >>> decode_runs(((4, 2), (5, 1))).tolist()
    [4, 4, 5]
    """
    numbers = np.array([number for number, _ in runs], np.uint64)
    return np.repeat(numbers, [count for _, count in runs])


def shard_digest(memory: ShardMemory) -> str:
    """SHA-256 of a shard's version, parameters and optimiser state, while nothing changes them."""
    digest = hashlib.sha256(int(memory.header[Header.VERSION]).to_bytes(8, "little"))
    for array in (memory.parameters, memory.states):
        digest.update(np.ascontiguousarray(array).data.cast("B") if array.size else b"")
    return digest.hexdigest()
