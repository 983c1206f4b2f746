"""A directory with jobs, clusters and written runs, in which commands can be tried; equal at every making."""

from __future__ import annotations

import json
import math
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path

from leptonai.compute.plan import Estimate, Placement, Plan, Tuning
from leptonai.compute.workload import Workload
from leptonai.core.clock import FakeClock
from leptonai.core.events import (
    CheckpointSaved,
    EpochDone,
    Evaluated,
    Event,
    RunEnded,
    RunStarted,
    StepDone,
    WorkerStarted,
)
from leptonai.core.journal import Journal
from leptonai.launch.registry import open_registry
from leptonai.training.checkpoint import Checkpoint, CheckpointStore
from leptonai.training.learner import LearnerState, RawTensor

JOBS = Path(__file__).parent / "jobs"
STARTED_SECONDS = 1_790_000_000.0
STEPS_PER_EPOCH = 50
NUM_EPOCHS = 4
NO_PROCESS = 2**22 + 1
"""A process id above the kernel's largest."""


def set_stage(directory: Path) -> None:
    """Copy the jobs and write two finished runs and one whose launcher died, all in the register of ``home``."""
    for path in JOBS.iterdir():
        if path.is_file():
            shutil.copy(path, directory)
    clock = FakeClock(start_seconds=STARTED_SECONDS)
    with open_registry(directory / "home", clock=clock) as registry:
        for name, rate in (("first", 0.1), ("second", 0.4), ("third", 0.2)):
            run_dir = directory / "runs" / name
            write_run(run_dir, learning_rate=rate, ended=name != "third")
            registry.register(run_id=name, path=run_dir, task="digits", num_workers=2, pid=NO_PROCESS)
            clock.advance(20.0)
            if name != "third":
                registry.finish(name, status="done", step=200, metrics={"accuracy": accuracy(200, rate)})
            clock.advance(3600.0)


def write_run(path: Path, *, learning_rate: float, ended: bool = True) -> None:
    """A run directory as launch leaves it: of a killed run when not ``ended``."""
    path.mkdir(parents=True)
    identity = {
        "name": "digits",
        "optimizer": f"SGD(lr={learning_rate})",
        "global_batch_size": 64,
        "seed": 0,
        "data": {"train": {"num_examples": 3200}},
    }
    job = {"task": "digits", "file": None, "overrides": [], "framework": "pytorch", "identity": identity}
    (path / "job.json").write_text(json.dumps(job))
    (path / "cluster.yaml").write_text("nodes: [{name: here}]\n")
    (path / "plan.json").write_text(json.dumps(made_plan().to_json()))
    with Journal(path / "events.jsonl", clock=FakeClock()) as journal:
        for event in run_events(path.name, learning_rate=learning_rate, ended=ended):
            journal.append(event)
    if ended:
        CheckpointStore(path / "checkpoints").save(checkpoint())


def run_events(run_id: str, *, learning_rate: float, ended: bool = True) -> Iterator[Event]:
    """Two workers over four epochs of 50 steps; one that is not ended stops in the third."""
    at = STARTED_SECONDS
    total = STEPS_PER_EPOCH * NUM_EPOCHS
    yield RunStarted(
        at_seconds=at, run_id=run_id, num_workers=2, total_steps=total, first_step=0, steps_per_epoch=50
    )
    for rank in (0, 1):
        yield WorkerStarted(at_seconds=at, rank=rank, pid=NO_PROCESS + rank)
    for step in range(10, (total if ended else 120) + 1, 10):
        at += 0.5
        loss = round(2.3 * math.exp(-step * learning_rate / 10) + 0.02, 6)
        yield StepDone(
            at_seconds=at, step=step, epoch=(step - 1) // 50, loss=loss, examples=640, seconds=0.5,
            learning_rate=learning_rate,
        )  # fmt: skip
        if step % STEPS_PER_EPOCH == 0:
            metrics = {"accuracy": accuracy(step, learning_rate), "loss": round(loss + 0.01, 6)}
            yield EpochDone(
                at_seconds=at, step=step, epoch=step // 50, metrics={"loss": loss}, examples=3200, seconds=2.5
            )
            yield Evaluated(
                at_seconds=at, step=step, epoch=step // 50, metrics=metrics, examples=1000, seconds=0.1
            )
    if ended:
        yield CheckpointSaved(
            at_seconds=at,
            step=total,
            path="checkpoints/step-00000200",
            digest="0" * 64,
            size_bytes=64,
            seconds=0.1,
        )
        yield RunEnded(at_seconds=at, status="done", step=total, seconds=12.5)


def accuracy(step: int, learning_rate: float) -> float:
    """What the written runs reach."""
    return round(0.99 - 0.5 * math.exp(-step * learning_rate / 10), 6)


def made_plan() -> Plan:
    """The plan of the written runs."""
    return Plan(
        strategy="data_parallel",
        backend="gloo",
        placements=tuple(Placement(rank=rank, node="here", cores=(rank,)) for rank in (0, 1)),
        tuning=Tuning(precision="float32", why="asked for"),
        estimate=Estimate(
            bytes_exchanged=4000,
            bandwidth_bytes_per_second=1e9,
            flops=2e6,
            flops_per_second=1e9,
            transfer_seconds=4e-6,
            compute_seconds=2e-3,
            total_seconds=2.004e-3,
            assumptions=("a core reaches 500 MFLOP/s",),
        ),
        workload=Workload(
            num_parameters=1000,
            parameter_bytes=4000,
            flops_per_example=31250.0,
            activation_bytes_per_example=100,
            num_examples=3200,
            global_batch_size=64,
            steps_per_epoch=50,
            total_steps=200,
        ),
        warnings=("2 workers of [1] thread share 1 core",),
    )


def checkpoint() -> Checkpoint:
    """Two tensors of a model and one of its optimiser."""
    tensors = {
        "model/weight": RawTensor("F32", (2, 2), struct.pack("<4f", 1, 2, 3, 4)),
        "model/bias": RawTensor("F32", (2,), struct.pack("<2f", 5, 6)),
        "optimizer/momentum": RawTensor("F32", (2,), struct.pack("<2f", 7, 8)),
    }
    state = LearnerState(tensors=tensors, values={})
    return Checkpoint(step=200, epoch=4, job={}, num_workers=2, state=state, extra={})
