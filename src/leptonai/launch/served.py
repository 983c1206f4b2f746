"""Joining the parts of a served run: memory, coordinator, servers, workers."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from leptonai.compute.engines.base import WorkerSpec
from leptonai.compute.engines.progress import ProgressPage
from leptonai.compute.plan import Plan
from leptonai.core.clock import Clock
from leptonai.core.errors import InputError
from leptonai.core.events import Event, Notice
from leptonai.launch.assignments import job_words, payload, worker_environment
from leptonai.launch.gang import SignallingEngine
from leptonai.launch.request import TrainRequest
from leptonai.launch.run_faults import RunFaults
from leptonai.launch.rundir import read_json_object
from leptonai.launch.scouting import num_slots
from leptonai.launch.served_gang import ServedGang
from leptonai.launch.served_memory import ServedMemory, create_memory
from leptonai.launch.served_record import Recorder, environment_words
from leptonai.launch.served_report import ServedReport
from leptonai.launch.served_servers import Servers
from leptonai.launch.served_tables import create_tables
from leptonai.launch.served_workers import Workers
from leptonai.training.checkpoint import MANIFEST_NAME
from leptonai.training.elastic import Elastic
from leptonai.training.job import Evaluate, StopWhen
from leptonai.training.optimizer_words import optimizer_from_json
from leptonai.training.parameter_server.codecs.shapes import shard_shapes
from leptonai.training.parameter_server.consistency import parse_consistency
from leptonai.training.parameter_server.coordinator import Coordinator
from leptonai.training.parameter_server.flat import TensorSpec
from leptonai.training.parameter_server.layout import ShardLayout, lay_out
from leptonai.training.parameter_server.memory import MemoryTooSmall


def served_gang(
    engine: SignallingEngine,
    request: TrainRequest,
    run_dir: Path,
    plan: Plan,
    scouted: Mapping[str, Any],
    scratch: Path,
    arrays: Sequence[int],
    stack: contextlib.ExitStack,
    *,
    clock: Clock,
    on_event: Callable[[Event], None],
) -> ServedGang:
    """The gang of a run with parameter servers, ready to run; ``stack`` gives its memory up.

    Raises:
        InputError: the request asks for what a served run cannot do.
        MemoryTooSmall: there is not enough shared memory.
    """
    assert plan.servers is not None
    if request.epoch_gate is not None:
        raise InputError("a run with a parameter server cannot be steered epoch by epoch from outside")
    served = scouted["served"]

    def notice(message: str) -> None:
        on_event(Notice(at_seconds=clock.now_seconds(), message=message))

    slots = num_slots(plan.num_workers, len(os.sched_getaffinity(0)))
    tensors = [TensorSpec(**{**tensor, "shape": tuple(tensor["shape"])}) for tensor in served["tensors"]]
    layout = lay_out(tensors, plan.servers.num_servers)
    memory, over_tcp = _memory(stack, layout, plan, served, slots, str(run_dir), notice)
    slots = len(memory.worker_bells)
    tables = create_tables(
        stack, served["tables"], num_servers=len(memory.shards), num_slots=slots, job=memory.job,
        resume_from=Path(scouted["resume"]["path"]) if scouted["resume"] else None,
    )  # fmt: skip
    memory = dataclasses.replace(memory, tables=tables)
    page = ProgressPage.create(slots)
    stack.callback(page.close)
    extra = _checkpoint_extra(scouted["resume"])
    report = ServedReport(
        report_seconds=served["report_seconds"], num_evaluate=served["num_evaluate"],
        steps_per_epoch=scouted["steps_per_epoch"], base_learning_rate=served["base_learning_rate"],
        clock=clock, on_event=on_event,
    )  # fmt: skip
    if scouted["resume"]:
        report.begin(scouted["resume"]["step"], extra)
    faults = RunFaults(
        request.faults, num_workers=plan.num_workers, num_servers=plan.servers.num_servers,
        total_steps=scouted["total_steps"], clock=clock,
    )  # fmt: skip
    parts = _Parts(
        request, run_dir, plan, scouted, scratch, arrays, memory, page, slots, tensors, layout, faults,
        over_tcp, {"job": run_dir.name.encode().hex(), "token": secrets.token_hex(32)},
    )  # fmt: skip

    def servers(on_loss: Callable[[str], None]) -> Servers:
        return Servers(engine, parts.server_spec, memory, clock=clock, on_event=on_event, on_loss=on_loss)

    return ServedGang(
        engine,
        servers,
        Workers(engine, parts.worker_spec, page, clock=clock, on_event=on_event),
        _coordinator(scouted, served, plan.num_workers, extra or None),
        memory,
        report,
        faults,
        _recorder(run_dir, memory, scouted, tensors, stack),
        num_workers=plan.num_workers,
        over_tcp=over_tcp,
        save_every_seconds=served["save_every_seconds"],
        elastic=Elastic(**served["elastic"]) if served["elastic"] else None,
        clock=clock,
        on_event=on_event,
    )


def _memory(
    stack: contextlib.ExitStack,
    layout: ShardLayout,
    plan: Plan,
    served: Mapping[str, Any],
    slots: int,
    run_id: str,
    notice: Callable[[str], None],
) -> tuple[ServedMemory, bool]:
    """The run's memory, and whether workers go over TCP."""
    assert plan.servers is not None
    optimizer, settings = optimizer_from_json(served["optimizer"]), served["settings"]
    journalled, over_tcp = plan.servers.durability != "none", settings["transport"] == "tcp"
    try:
        memory = create_memory(
            stack,
            layout,
            optimizer,
            num_slots=slots,
            journalled=journalled,
            run_id=run_id,
            has_reads=not over_tcp,
        )
    except MemoryTooSmall as error:
        if not settings["tcp_fallback"]:
            raise
        # Over TCP a worker keeps what it read to itself, and there is room for no more workers than now.
        memory = create_memory(
            stack,
            layout,
            optimizer,
            num_slots=plan.num_workers,
            journalled=journalled,
            run_id=run_id,
            has_reads=False,
        )
        notice(f"{error.message}: workers go over TCP, and no more than {plan.num_workers} fit")
        return memory, True
    return memory, over_tcp


def _coordinator(
    scouted: Mapping[str, Any], served: Mapping[str, Any], num_workers: int, resume: Mapping[str, Any] | None
) -> Coordinator:
    rule = served["stop_when"]
    return Coordinator(
        num_examples=served["num_examples"],
        global_batch_size=served["global_batch_size"],
        total_steps=scouted["total_steps"],
        mode=parse_consistency(served["mode"]),
        num_workers=num_workers,
        num_evaluation_examples=served["num_evaluate"],
        evaluate=Evaluate(**served["evaluate"]),
        save_every_steps=served["save_every_steps"],
        stop_when=StopWhen(**rule).reached if rule else None,
        state=resume,
    )


def _recorder(
    run_dir: Path,
    memory: ServedMemory,
    scouted: Mapping[str, Any],
    tensors: Sequence[TensorSpec],
    stack: contextlib.ExitStack,
) -> Recorder | None:
    """Keeps the interleaving, if the job asks for it."""
    served = scouted["served"]
    if not served["settings"]["record"]:
        return None
    if scouted["resume"] is not None:
        raise InputError(
            "a resumed run cannot be recorded: a record begins with the run",
            hint="resume with --set parameter_server.record=false, or start a new run",
        )
    recorder = Recorder(
        run_dir, memory, identity=json.dumps(scouted["identity"], sort_keys=True), tensors=tensors,
        optimizer=optimizer_from_json(served["optimizer"]), versions=environment_words(scouted["framework"]),
    )  # fmt: skip
    stack.callback(recorder.close)
    return recorder


def _checkpoint_extra(resume: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the checkpoint to go on from keeps beside the weights."""
    if resume is None:
        return {}
    extra: dict[str, Any] = read_json_object(Path(resume["path"]) / MANIFEST_NAME)["extra"]
    return extra


@dataclasses.dataclass(frozen=True)
class _Parts:
    """What the specs of servers and workers are made of."""

    request: TrainRequest
    run_dir: Path
    plan: Plan
    scouted: Mapping[str, Any]
    scratch: Path
    arrays: Sequence[int]
    memory: ServedMemory
    page: ProgressPage
    slots: int
    tensors: Sequence[TensorSpec]
    layout: ShardLayout
    faults: RunFaults
    over_tcp: bool
    secrets: Mapping[str, str]

    def server_spec(self, number: int, port: int) -> WorkerSpec:
        """The spec of one server, that listens on ``port`` (0: any) if workers come over TCP."""
        served = self.scouted["served"]
        settings = served["settings"]
        return WorkerSpec(
            name=f"server-{number}",
            assignment={
                "role": "server",
                "server": number,
                "job": self.memory.job,
                "num_servers": len(self.memory.shards),
                "tables": served["tables"],
                "optimizer": served["optimizer"],
                "rules": {
                    "delay_compensation": settings["delay_compensation"],
                    "staleness_scaled_lr": settings["staleness_scaled_lr"],
                    "age_decay": served["age_decay"],
                },
                "codec": served["codec"],
                "seed": served["seed"],
                "ranges": [list(pair) for pair in self.layout.ranges(number)],
                "shapes": [
                    [start, list(shape)] for start, shape in shard_shapes(self.layout, self.tensors, number)
                ],
                "faults": self.faults.assignment(),
                "listen": {**self.secrets, "port": port} if self.over_tcp else None,
            },
            fds=self.memory.server_fds(number),
            log=self.run_dir / "logs" / f"server-{number}.log",
            environment={**worker_environment(1, self.request.home), "TMPDIR": str(self.scratch)},
        )

    def worker_spec(
        self, name: str, rank: int | None, initialize: bool, addresses: Sequence[Sequence[Any]]
    ) -> WorkerSpec:
        """The spec of the worker of a rank, or of a spare."""
        plan, served, resume = self.plan, self.scouted["served"], self.scouted["resume"]
        place = plan.placements[(rank or 0) % plan.num_workers]
        return WorkerSpec(
            name=name,
            assignment={
                "role": "served",
                "job": job_words(self.request),
                "framework": self.scouted["framework"],
                "some_unused": self.scouted["some_unused"],
                "identity": self.scouted["identity"],
                "num_workers": plan.num_workers,
                "num_arrays": len(self.arrays),
                "num_servers": len(self.memory.shards),
                "num_slots": self.slots,
                "memory_id": self.memory.job,
                "tables": served["tables"],
                "rank": rank,
                "initialize": initialize,
                "device": "cpu" if place.device_kind == "cpu" else f"cuda:{place.device_index}",
                "tuning": {**dataclasses.asdict(plan.tuning), "trials": [], "threads": place.threads},
                "mode": served["mode"],
                "reads": served["settings"]["reads"],
                "codec": served["codec"],
                "record": served["settings"]["record"],
                "hogwild": served["settings"]["hogwild"],
                "addresses": [list(address) for address in addresses],
                "secrets": self.secrets if self.over_tcp else None,
                "faults": self.faults.assignment(),
                "base_learning_rate": served["base_learning_rate"],
                "state_names": served["state_names"],
                "run_dir": str(self.run_dir),
                "resume_from": resume["path"] if resume else None,
            },
            payload=payload(self.request.job),
            fds=[self.page.fd, *self.arrays, *self.memory.worker_fds()],
            log=self.run_dir / "logs" / f"{name}.log",
            # Not pinned: servers need the cores too, and come and go.
            environment={**worker_environment(place.threads, self.request.home), "TMPDIR": str(self.scratch)},
        )
