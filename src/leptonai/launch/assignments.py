"""What each worker is given: its assignment, its place, its environment, and the memory it shares."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from leptonai.compute.engines.base import WorkerSpec
from leptonai.compute.engines.progress import ProgressPage
from leptonai.compute.plan import Plan
from leptonai.core.errors import InputError
from leptonai.launch.jobs import JobFile, JobSource, LiveJob
from leptonai.launch.request import TrainRequest
from leptonai.training.loopback import LOOPBACK_ENVIRONMENT


def worker_specs(
    request: TrainRequest,
    run_dir: Path,
    plan: Plan,
    scouted: Mapping[str, Any],
    scratch: Path,
    page: ProgressPage,
    fds: list[int],
    private: Mapping[str, Any] | None = None,
) -> list[WorkerSpec]:
    resume = scouted["resume"]
    tuning = {**dataclasses.asdict(plan.tuning), "trials": []}
    common = {
        "role": "worker",
        "job": job_words(request),
        "framework": scouted["framework"],
        "some_unused": scouted["some_unused"],
        "identity": scouted["identity"],
        "num_workers": plan.num_workers,
        "backend": plan.backend,
        "tuning": tuning,
        "run_dir": str(run_dir),
        "rendezvous": str(scratch / "rendezvous"),
        "resume_from": resume["path"] if resume else None,
        "gated": request.epoch_gate is not None,
        "private": private,
    }
    return [
        WorkerSpec(
            name=f"rank-{place.rank}",
            assignment={
                **common,
                "rank": place.rank,
                "device": "cpu" if place.device_kind == "cpu" else f"cuda:{place.device_index}",
                "tuning": {**tuning, "threads": place.threads},
            },
            payload=payload(request.job),
            fds=[page.fd, *fds],
            log=run_dir / "logs" / f"rank-{place.rank}.log",
            cores=place.cores,
            environment={**worker_environment(place.threads, request.home), "TMPDIR": str(scratch)},
        )
        for place in plan.placements
    ]


def worker_environment(threads: int, home: Path) -> dict[str, str]:
    """Variables of every worker: sockets on loopback, thread counts, and TensorFlow's chatter off."""
    return {
        **LOOPBACK_ENVIRONMENT,
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "KERAS_BACKEND": "tensorflow",
        # What one worker compiled serves the others, and later runs.
        "TORCHINDUCTOR_CACHE_DIR": str(home / "torchinductor"),
        "PYTHONUNBUFFERED": "1",
    }


def job_words(request: TrainRequest) -> dict[str, Any]:
    source = request.job
    if isinstance(source, JobFile):
        return {"path": str(source.path.absolute()), "overrides": list(request.overrides)}
    return {
        "arrays": [
            {"name": name, "dtype": array.dtype.str, "shape": list(array.shape)}
            for name, array in source.arrays.items()
        ]
    }


def payload(source: JobSource) -> bytes:
    return source.payload if isinstance(source, LiveJob) else b""


def shared_memory(source: JobSource, stack: contextlib.ExitStack) -> list[int]:
    """One memory file an array of a live job; they vanish with their last holder."""
    fds = []
    for name, array in source.arrays.items() if isinstance(source, LiveJob) else ():
        if array.dtype.hasobject:
            raise InputError(f"array {name!r} holds Python objects", hint="convert it to numbers first")
        fd = os.memfd_create(f"lepton-{name}", os.MFD_CLOEXEC)
        stack.callback(os.close, fd)
        os.ftruncate(fd, max(1, array.nbytes))
        with open(fd, "wb", closefd=False) as file:
            array.tofile(file) if array.flags.c_contiguous else file.write(array.tobytes())
        fds.append(fd)
    return fds
