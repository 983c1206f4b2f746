"""A job's operations timed as its workers would run them: as many at once as the plan has, each on its cores."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leptonai.compute.engines.base import Exited, Message, WorkerSpec
from leptonai.compute.engines.local import LocalEngine
from leptonai.compute.plan import Plan, Tuning
from leptonai.compute.prediction.operations_step import OperatorTimes, of_all_workers
from leptonai.core.clock import Clock
from leptonai.core.errors import Fault
from leptonai.core.values import value_from_json, value_to_json
from leptonai.launch.assignments import job_words, payload, shared_memory, worker_environment
from leptonai.launch.gang import Failure, tail, to_error
from leptonai.launch.request import TrainRequest

if TYPE_CHECKING:
    from leptonai.launch.worker import Line
    from leptonai.training.job import TrainJob

LIMIT_SECONDS = 600.0
POLL_SECONDS = 1.0


def time_in_workers(
    engine: LocalEngine, request: TrainRequest, plan: Plan, scratch: Path, clock: Clock
) -> OperatorTimes | None:
    """Start the plan's workers, have all of them time the job's operations at once, and tell the mean.

    Returns:
        None for a plan whose passes are compiled: nothing of theirs can be timed apart.

    Raises:
        Fault: a worker died or hangs.
    """
    if plan.tuning.compile:
        return None
    found: dict[str, OperatorTimes] = {}
    with ExitStack() as stack:
        stack.callback(engine.stop_workers)
        fds = shared_memory(request.job, stack)
        null = os.open(os.devnull, os.O_RDONLY)
        stack.callback(os.close, null)
        names = [f"timing-{place.rank}" for place in plan.placements]
        for name, place in zip(names, plan.placements, strict=True):
            tuning = {**dataclasses.asdict(plan.tuning), "trials": [], "threads": place.threads}
            engine.start(
                WorkerSpec(
                    name=name,
                    assignment={
                        "role": "timing",
                        "job": job_words(request),
                        "num_workers": plan.num_workers,
                        "tuning": tuning,
                    },
                    payload=payload(request.job),
                    fds=[null, *fds],
                    log=scratch / f"{name}.log",
                    cores=place.cores,
                    environment={**worker_environment(place.threads, request.home), "TMPDIR": str(scratch)},
                )
            )
        ready: set[str] = set()
        deadline = clock.monotonic_seconds() + LIMIT_SECONDS
        while len(found) < len(names):
            for report in engine.poll(POLL_SECONDS):
                if isinstance(report, Message) and "failed" in report.values:
                    raise to_error(Failure(rank=names.index(report.name), **report.values["failed"]))
                if isinstance(report, Message) and "timed" in report.values:
                    found[report.name] = value_from_json(OperatorTimes, report.values["timed"])
                elif isinstance(report, Message) and "ready" in report.values:
                    ready.add(report.name)
                    if len(ready) == len(names):
                        for name in names:
                            engine.send(name, {"begin": True})
                elif isinstance(report, Exited) and report.name not in found:
                    log = tail(scratch / f"{report.name}.log")
                    raise Fault("a worker died while it timed the job's operations", detail=log or None)
            if clock.monotonic_seconds() > deadline:
                raise Fault(f"the job's operations could not be timed within {LIMIT_SECONDS:.0f} s")
    return of_all_workers([found[name] for name in names])


def time_in_worker(job: TrainJob, assignment: Mapping[str, Any], line: Line) -> dict[str, Any]:
    """In a worker: the operations of a PyTorch job at its share of a batch, once all others are ready; JSON-ready."""
    import torch

    from leptonai.launch.frameworks import Place, torch_options
    from leptonai.training.pytorch.learner import build_model
    from leptonai.training.pytorch.operation_timing import time_operations
    from leptonai.training.pytorch.passes import Passes
    from leptonai.training.pytorch.profile import sample

    tuning, num_workers = Tuning(**assignment["tuning"]), assignment["num_workers"]
    torch.set_num_threads(tuning.threads)
    model = build_model(job)
    if tuning.memory_format == "channels_last":
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    model.train()
    passes = Passes(job, torch_options(tuning, Place(device="cpu", some_unused=False)), model)
    examples = sample(job.load_data(), -(-job.global_batch_size // num_workers))

    def begin() -> None:
        line.send({"ready": True})
        line.receive()

    timed = time_operations(
        model, passes.to_device(examples), lambda net, columns: passes.loss(examples), num_busy=num_workers,
        begin=begin,
    )  # fmt: skip
    found: dict[str, Any] = value_to_json(timed)
    return found
