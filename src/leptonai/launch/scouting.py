"""Having a worker look at the job, and planning from what it found."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from leptonai.compute.cluster import Cluster
from leptonai.compute.engines.base import Exited, Message, WorkerSpec
from leptonai.compute.engines.local import LocalEngine
from leptonai.compute.plan import Plan, Trial, Tuning
from leptonai.compute.planner import plan as make_compute_plan
from leptonai.compute.servers import ServerPlan, plan_servers
from leptonai.compute.workload import Workload
from leptonai.core.clock import Clock
from leptonai.core.errors import Fault, InputError, LeptonError
from leptonai.core.privacy import PrivacyForecast
from leptonai.launch.assignments import job_words, payload, shared_memory, worker_environment
from leptonai.launch.gang import Failure, tail, to_error
from leptonai.launch.request import TrainRequest

SCOUT_SECONDS = 600.0
# Frames of a traceback that are not the user's own.
LIBRARIES = ("leptonai", "site-packages", "lib/python")


def scout_job(
    engine: LocalEngine,
    request: TrainRequest,
    logs: Path,
    *,
    resume_dir: Path | None,
    clock: Clock,
) -> Mapping[str, Any]:
    """Have a worker look at the job."""
    cores = len(os.sched_getaffinity(0))
    threads = threads_per_worker(request.cluster, cores)
    kept = resume_dir is not None and (resume_dir / "plan.json").exists()
    with contextlib.ExitStack() as stack:
        fds = shared_memory(request.job, stack)
        null = os.open(os.devnull, os.O_RDONLY)
        stack.callback(os.close, null)
        engine.start(
            WorkerSpec(
                name="scout",
                assignment={
                    "role": "scout",
                    "job": job_words(request),
                    "threads": threads,
                    "num_workers": request.cluster.num_workers,
                    "autotune": request.autotune and not kept,
                    "device": "cuda" if _num_gpus(request.cluster) else "cpu",
                    "resume_dir": str(resume_dir) if resume_dir else None,
                },
                payload=payload(request.job),
                fds=[null, *fds],
                log=logs / "scout.log",
                environment=worker_environment(threads, request.home),
            )
        )
        return _await_scout(engine, logs / "scout.log", clock)


def _await_scout(engine: LocalEngine, log: Path, clock: Clock) -> Mapping[str, Any]:
    deadline = clock.monotonic_seconds() + SCOUT_SECONDS
    found: Mapping[str, Any] | None = None
    while clock.monotonic_seconds() < deadline:
        for report in engine.poll(1.0):
            if isinstance(report, Message) and "failed" in report.values:
                raise _scout_error(Failure(rank=0, **report.values["failed"]))
            if isinstance(report, Message) and "scouted" in report.values:
                found = report.values["scouted"]
            if isinstance(report, Exited):
                if found is not None:
                    return found
                raise Fault("the job could not be examined: its process died", detail=tail(log) or None)
    raise Fault(
        f"the job could not be examined within {SCOUT_SECONDS:.0f} s",
        hint="does building the model or data hang?",
    )


def _scout_error(failure: Failure) -> LeptonError:
    error = to_error(failure)
    if failure.kind != "error":
        return error
    # The job's own code failed on a look at two examples: the caller must fix it.
    places = [line.strip() for line in failure.traceback.splitlines() if line.lstrip().startswith("File ")]
    place = next((line for line in reversed(places) if not any(word in line for word in LIBRARIES)), "")
    return InputError(f"the job failed when tried on two examples: {failure.message}", hint=place or None)


def plan_from(cluster: Cluster, scouted: Mapping[str, Any], *, for_run: bool, kept: Tuning | None) -> Plan:
    cores = tuple(sorted(os.sched_getaffinity(0)))
    made = make_compute_plan(
        Workload.from_json(scouted["workload"]),
        cluster,
        tuning=kept or _tuning(scouted["tuning"]),
        available_cores=cores,
        num_gpus=scouted["num_gpus"],
        measured_core_flops=scouted["core_flops"],
        for_run=for_run,
        servers=_servers(scouted["served"], cluster.num_workers, len(cores))
        if scouted.get("served")
        else None,
    )
    private = scouted.get("private")
    return made if private is None else replace(made, privacy=_forecast(private))


def _forecast(private: Mapping[str, Any]) -> PrivacyForecast:
    plan = private["plan"]
    return PrivacyForecast(
        epsilon=private["epsilon"], delta=plan["delta"], noise_multiplier=plan["noise_multiplier"],
        sample_rate=plan["sample_rate"], num_units=plan["num_units"], unit=plan["unit"],
    )  # fmt: skip


def num_slots(num_workers: int, num_cores: int) -> int:
    """Workers a served run has room for: it may grow to one a core, and to a few more than it began with."""
    return max(num_workers + 2, num_cores)


def _servers(served: Mapping[str, Any], num_workers: int, num_cores: int) -> ServerPlan:
    tensors = served["tensors"]
    settings = served["settings"]
    return plan_servers(
        parameter_bytes=4 * sum(math.prod(tensor["shape"]) for tensor in tensors),
        num_states=len(served["state_names"]),
        num_slots=num_slots(num_workers, num_cores),
        num_cores=num_cores,
        asked=settings["servers"],
        consistency=settings["consistency"],
        durability=settings["durability"],
    )


def _tuning(found: Mapping[str, Any]) -> Tuning:
    return Tuning(**{**found, "trials": tuple(Trial(**trial) for trial in found["trials"])})


def threads_per_worker(cluster: Cluster, num_cores: int) -> int:
    """Compute threads of each worker: what the cluster file says, else an equal share of the cores."""
    return cluster.threads_per_worker or max(1, num_cores // cluster.num_workers)


def _num_gpus(cluster: Cluster) -> int:
    return sum(node.num_devices("gpu") for node in cluster.nodes)
