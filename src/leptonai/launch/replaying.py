"""Replaying a recorded run: a process that has the framework runs it again, the launcher tells how it went."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leptonai.compute.engines.base import Exited, Message, WorkerSpec
from leptonai.compute.engines.local import LocalEngine
from leptonai.core.errors import Fault, InputError
from leptonai.launch.assignments import worker_environment
from leptonai.launch.gang import Failure, tail, to_error
from leptonai.launch.rundir import RunDirectory, read_json_object
from leptonai.launch.served_record import FILE_NAME

if TYPE_CHECKING:
    from leptonai.training.job import TrainJob


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayResult:
    """What a replay came to.

    Args:
        same: whether the final parameters and optimiser state are the run's, bit for bit; None: the run broke
            off, so there is no end to compare with.
        updates: applied, over all shards' largest count.
        digests: of each shard at the end.
        seconds: the replay took.
    """

    same: bool | None
    updates: int
    digests: tuple[str, ...]
    seconds: float


def replay_run(run_dir: Path, engine: LocalEngine, *, home: Path) -> ReplayResult:
    """Run a recorded run again, from its directory alone.

    Raises:
        InputError: it was not recorded, or its job file is gone or has changed.
        Fault: the record is damaged, or what is computed differs from it.
    """
    directory = RunDirectory(run_dir)
    job, plan = read_json_object(run_dir / "job.json"), directory.plan()
    if not (run_dir / FILE_NAME).is_file():
        raise InputError(
            f"{run_dir}: the run was not recorded", hint="record with ParameterServer(record=True)"
        )
    if job["file"] is None:
        raise InputError(f"{run_dir}: the job was made in a program, so there is no file to run again")
    with tempfile.TemporaryDirectory(prefix="lepton-") as scratch, contextlib.ExitStack() as stack:
        null = os.open(os.devnull, os.O_RDONLY)
        stack.callback(os.close, null)
        stack.callback(engine.stop_workers)
        log = Path(scratch) / "replay.log"
        engine.start(
            WorkerSpec(
                name="replay",
                assignment={
                    "role": "replay",
                    "job": {"path": job["file"], "overrides": job["overrides"]},
                    "framework": job["framework"],
                    "threads": plan.placements[0].threads,
                    "tuning": {**json.loads(json.dumps(plan.to_json()["tuning"])), "trials": []},
                    "num_workers": plan.num_workers,
                    "path": str(run_dir / FILE_NAME),
                },
                fds=[null],
                log=log,
                environment={**worker_environment(plan.placements[0].threads, home), "TMPDIR": scratch},
            )
        )
        return _await_replay(engine, log)


def _await_replay(engine: LocalEngine, log: Path) -> ReplayResult:
    found: Mapping[str, Any] | None = None
    while True:
        for report in engine.poll(1.0):
            match report:
                case Message(values={"failed": failed}):
                    raise to_error(Failure(rank=0, **failed))
                case Message(values={"replayed": values}):
                    found = values
                case Exited() if found is not None:
                    return ReplayResult(**{**found, "digests": tuple(found["digests"])})
                case Exited():
                    raise Fault("the replay's process died", detail=tail(log) or None)
                case _:
                    pass


def replay_in_process(job: TrainJob, assignment: Mapping[str, Any]) -> dict[str, Any]:
    """The replay itself, in a process of its own; returns what :class:`ReplayResult` holds."""
    import time

    from leptonai.compute.plan import Tuning
    from leptonai.launch.frameworks import FRAMEWORKS, Place
    from leptonai.launch.served_scout import served_optimizers
    from leptonai.training.parameter_server.codecs.base import Codec
    from leptonai.training.parameter_server.codecs.parse import mode_codec, parse_codec
    from leptonai.training.parameter_server.codecs.shapes import shard_shapes
    from leptonai.training.parameter_server.consistency import AsyncDiloco
    from leptonai.training.parameter_server.flat import FlatLearner
    from leptonai.training.parameter_server.interleaving import read_interleaving
    from leptonai.training.parameter_server.kernels import initialise_states, num_states
    from leptonai.training.parameter_server.layout import lay_out
    from leptonai.training.parameter_server.memory import ShardMemory, ShardShape
    from leptonai.training.parameter_server.replay import replay
    from leptonai.training.parameter_server.served_replay import served_work
    from leptonai.training.parameter_server.shard import Shard

    began = time.monotonic()
    recording = read_interleaving(Path(assignment["path"]))
    settings = job.parameter_server
    if settings is None:
        raise InputError("the job has no parameter server any more", hint="has the job file changed since?")
    framework = FRAMEWORKS[assignment["framework"]]()
    tuning = Tuning(**assignment["tuning"])
    place = Place(device="cpu", some_unused=False)
    data = job.load_data()

    def make_learner() -> FlatLearner:
        framework.configure(assignment["threads"])
        return framework.flat_learner(job, tuning, place)

    learner = make_learner()
    inner, server = served_optimizers(job)
    layout = lay_out(learner.tensors, len(recording.began.lengths))
    text = mode_codec(settings.codec, settings.mode)

    def codec(shard: int, seed: int) -> Codec:
        return parse_codec(text, seed=seed, shapes=shard_shapes(layout, learner.tensors, shard))

    shards, decoders = [], [codec(shard, job.seed) if text else None for shard in range(layout.num_shards)]
    for number, length in enumerate(layout.lengths):
        memory = ShardMemory.create(
            ShardShape(
                num_elements=length, num_states=num_states(server), num_slots=recording.began.num_slots,
                chunk_elements=recording.began.chunk_elements, journalled=False,
            )
        )  # fmt: skip
        initialise_states(server, memory.states)
        decoder = decoders[number]
        decode = (
            None if decoder is None else (lambda _, payload, out, found=decoder: found.decode(payload, out))
        )
        shards.append(
            Shard(
                memory, server, delay_compensation=settings.delay_compensation,
                staleness_scaled_lr=settings.staleness_scaled_lr, decode=decode, ranges=layout.ranges(number),
                age_decay=settings.mode.age_decay if isinstance(settings.mode, AsyncDiloco) else 0.0,
            )
        )  # fmt: skip
    for index, values in enumerate(learner.initial()):
        layout.scatter(index, values, [shard.memory.parameters for shard in shards])
    work = served_work(
        job=job, data=data, make_learner=make_learner, layout=layout, num_workers=assignment["num_workers"],
        base_learning_rate=inner.lr,
        make_codec=(lambda worker: lambda shard: codec(shard, job.seed + worker)) if text else None,
    )  # fmt: skip
    found = replay(recording, shards, work)
    return {
        "same": found.same, "updates": max(found.versions), "digests": list(found.digests),
        "seconds": time.monotonic() - began,
    }  # fmt: skip
