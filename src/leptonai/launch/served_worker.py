"""The entry of a worker of a served run: map the shards, build the model in them, do what is dealt."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from leptonai.compute.engines.progress import ProgressPage
from leptonai.compute.plan import Tuning
from leptonai.core.clock import SystemClock
from leptonai.core.errors import Fault
from leptonai.core.events import CheckpointFailed, CheckpointSaved, event_to_json
from leptonai.launch.frameworks import FRAMEWORKS, Place
from leptonai.launch.saboteur import saboteur_from
from leptonai.launch.served_memory import InheritedMemory, inherit_memory
from leptonai.launch.served_tables import embeddings_of, inherit_tables, save_tables, table_links
from leptonai.training.checkpoint import Checkpoint, CheckpointStore
from leptonai.training.learner import LearnerState, RawTensor
from leptonai.training.parameter_server.client import Client
from leptonai.training.parameter_server.codecs.base import Codec
from leptonai.training.parameter_server.codecs.parse import parse_codec
from leptonai.training.parameter_server.codecs.shapes import shard_shapes
from leptonai.training.parameter_server.consistency import Bsp, is_local, parse_consistency
from leptonai.training.parameter_server.layout import ShardLayout, lay_out
from leptonai.training.parameter_server.link import Link
from leptonai.training.parameter_server.local_link import LocalLink
from leptonai.training.parameter_server.memory import Header
from leptonai.training.parameter_server.served_loop import Phase, ServedLoop
from leptonai.training.parameter_server.states import load_server_state, server_state
from leptonai.training.parameter_server.tables.session import TableSession
from leptonai.training.parameter_server.witness import Witness

if TYPE_CHECKING:
    from leptonai.launch.worker import Line
    from leptonai.training.job import TrainJob
    from leptonai.training.parameter_server.flat import FlatLearner


def run_served_worker(
    job: TrainJob, assignment: Mapping[str, Any], line: Line, fds: Sequence[int]
) -> dict[str, Any]:
    """Play one worker to the end of the run; returns what it ended with."""
    worker = _ServedWorker(job, assignment, line, fds)
    worker.take_rank()
    worker.loop().run()
    return {"rank": worker.rank}


class _ServedWorker:
    """The parts of one worker, and how they are joined."""

    def __init__(self, job: TrainJob, assignment: Mapping[str, Any], line: Line, fds: Sequence[int]) -> None:
        self._job, self._assignment, self._line = job, assignment, line
        framework = FRAMEWORKS[assignment["framework"]]()
        tuning = Tuning(**assignment["tuning"])
        framework.configure(tuning.threads)
        self._data = job.load_data()
        place = Place(device=assignment["device"], some_unused=assignment["some_unused"])
        self._learner: FlatLearner = framework.flat_learner(job, tuning, place)
        self._page = ProgressPage(fds[0], assignment["num_slots"])
        first = 1 + assignment["num_arrays"]
        self._memory: InheritedMemory = inherit_memory(
            fds[first:], num_servers=assignment["num_servers"], num_slots=assignment["num_slots"],
            job=assignment["memory_id"],
        )  # fmt: skip
        num_servers, num_slots = assignment["num_servers"], assignment["num_slots"]
        self._embeddings = embeddings_of(assignment["framework"], cast(Any, self._learner).model)
        self._table_parts = inherit_tables(
            fds[first + 2 * num_servers + num_slots :], assignment["tables"], servers=range(num_servers),
            num_servers=num_servers, num_slots=num_slots, job=assignment["memory_id"],
        )  # fmt: skip
        self._layout: ShardLayout = lay_out(self._learner.tensors, assignment["num_servers"])
        self._store = CheckpointStore(
            Path(assignment["run_dir"]) / "checkpoints", keep=job.checkpoints.keep,
            before_save=lambda step: self._saboteur.before_save(step),
        )  # fmt: skip
        self._clock = SystemClock()
        self._witness = Witness(self._tell_computed) if assignment["record"] else None
        self.rank = -1

    def take_rank(self) -> None:
        """As assigned, or, for a spare, when the launcher needs it."""
        rank, faults = self._assignment["rank"], self._assignment["faults"]
        if rank is None:
            self._line.send({"served": {"kind": "spare"}})
            taken = self._line.receive()["take"]
            rank, faults = taken["rank"], taken["faults"]
        self.rank = rank
        self._saboteur = saboteur_from(faults, "worker", rank, report=self._report_fault)
        self._links = self._new_links()
        self._client = self._new_client()
        self._tables = self._new_tables()
        self._begin()
        self._bind(self._assignment["mode"])

    def _new_links(self) -> list[Link]:
        """To each server through its memory, or over TCP where the launcher says so."""
        shards, addresses = self._memory.shards, self._assignment["addresses"]
        if not addresses:
            own = self._memory.worker_bells[self.rank]
            return [
                LocalLink(shard, self.rank, server_bell=bell, worker_bell=own, views=False)
                for shard, bell in zip(shards, self._memory.server_bells, strict=True)
            ]
        from leptonai.training.parameter_server.tcp_link import TcpLink

        job, token = (bytes.fromhex(self._assignment["secrets"][name]) for name in ("job", "token"))
        return [
            TcpLink(
                [(host, port)], job=job, token=token, slot=self.rank, num_elements=shard.shape.num_elements
            )
            for shard, (host, port) in zip(shards, addresses, strict=True)
        ]

    def _new_tables(self) -> TableSession:
        """The model's sparse tables, joined to the servers."""
        links = table_links(
            self._table_parts, self._links, self.rank, shards=self._memory.shards,
            server_bells=self._memory.server_bells, worker_bell=self._memory.worker_bells[self.rank],
            over_tcp=bool(self._assignment["addresses"]),
        )  # fmt: skip
        return TableSession(self._embeddings, links)

    def _tell_computed(self, values: Mapping[str, Any]) -> None:
        self._line.send({"computed": values})

    def _report_fault(self, number: int, step: int) -> None:
        self._line.send({"fault": {"number": number, "step": step}})

    def _new_client(self) -> Client:
        text, tensors = self._assignment["codec"], self._learner.tensors

        def codec(shard: int) -> Codec:
            shapes = shard_shapes(self._layout, tensors, shard)
            return parse_codec(text, seed=self._job.seed + self.rank, shapes=shapes)

        return Client(
            self._links, tensors, self._layout, codec=codec if text else None, witness=self._witness
        )

    def _bind(self, mode_text: str) -> None:
        """Let the model compute from the shards: from their memory itself where nobody changes it meanwhile."""
        mode, reads = parse_consistency(mode_text), self._assignment["reads"]
        views = (
            reads == "views"
            or self._assignment["hogwild"]
            or (reads == "auto" and isinstance(mode, Bsp) and not self._assignment["record"])
        )
        for link in self._links:
            if isinstance(link, LocalLink):
                link.views = views and not is_local(mode)
        self._client.pull()
        if not is_local(mode):
            self._learner.bind(self._client.parameters(), self._client.gradients())
            self._learner.refresh()

    def _begin(self) -> None:
        """The first worker writes the parameters that the run starts with; all take over what else was saved."""
        resume = self._assignment["resume_from"]
        checkpoint = self._store.load(Path(resume), attached=False) if resume else None
        if checkpoint is not None:
            self._learner.restore(_without_server(checkpoint.state))
        if not self._assignment["initialize"]:
            return
        tensors, shards = self._learner.tensors, self._memory.shards
        if checkpoint is not None:
            load_server_state(
                checkpoint.state, tensors, self._layout, shards, self._assignment["state_names"]
            )
        else:
            parameters = [shard.parameters for shard in shards]
            for index, values in enumerate(self._learner.initial()):
                self._layout.scatter(index, values, parameters)
        self._line.send({"served": {"kind": "initialized"}})

    def loop(self) -> ServedLoop:
        """The worker's loop, ready to run."""
        job, assignment = self._job, self._assignment
        return ServedLoop(
            job=job, data=self._data, learner=self._learner, client=self._client, launcher=self._line,
            rank=self.rank, num_workers=assignment["num_workers"], base_learning_rate=assignment["base_learning_rate"],
            note=self._note, save=self._save, rebind=self._bind, tables=self._tables, witness=self._witness,
            hogwild=assignment["hogwild"], strikes=self._saboteur,
        )  # fmt: skip

    def _note(self, step: int, phase: Phase) -> None:
        self._page.note(self.rank, step, phase)

    def _save(self, step: int, extra: Mapping[str, Any]) -> None:
        began = self._clock.monotonic_seconds()
        state = self._learner.state()
        tensors: dict[str, RawTensor] = {
            **state.tensors,
            **server_state(
                self._learner.tensors, self._layout, self._memory.shards, self._assignment["state_names"]
            ),
        }
        versions = [int(shard.header[Header.VERSION]) for shard in self._memory.shards]
        checkpoint = Checkpoint(
            step=step, epoch=step // self._job.steps_per_epoch(len(self._data.train)), job=self._assignment["identity"],
            num_workers=self._assignment["num_workers"],
            state=dataclasses.replace(state, tensors=tensors, values={**state.values, "server_versions": versions}),
            extra=extra,
        )  # fmt: skip
        try:
            saved = self._store.save(checkpoint, attach=lambda folder: save_tables(self._table_parts, folder))
        except Fault as error:
            event: CheckpointFailed | CheckpointSaved = CheckpointFailed(
                at_seconds=self._clock.now_seconds(), step=step, reason=error.message
            )
        else:
            event = CheckpointSaved(
                at_seconds=self._clock.now_seconds(), step=step, path=f"checkpoints/{saved.path.name}",
                digest=saved.digest, size_bytes=saved.size_bytes,
                seconds=self._clock.monotonic_seconds() - began,
            )  # fmt: skip
        self._line.send({"event": event_to_json(event)})


def _without_server(state: LearnerState) -> LearnerState:
    """What the learner itself saved."""
    tensors = {name: tensor for name, tensor in state.tensors.items() if not name.startswith("server/")}
    return dataclasses.replace(state, tensors=tensors)
