"""What the launcher must know of a job before it can plan, found in a worker so the launcher stays light."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leptonai.core.errors import Fault
from leptonai.launch.engine import FrameworkName
from leptonai.launch.frameworks import FRAMEWORKS, Place, framework_of
from leptonai.launch.jobs import identity
from leptonai.launch.private_scout import scout_private
from leptonai.launch.served_scout import scout_served, scout_tables

if TYPE_CHECKING:
    from leptonai.training.job import TrainJob


def scout(job: TrainJob, assignment: Mapping[str, Any]) -> dict[str, Any]:
    """Build the job once, look at it, and time a few steps if asked; JSON-ready.

    Args:
        assignment: ``threads``, ``num_workers``, ``autotune``, ``device`` and ``resume_dir`` (or None).
    """
    import torch

    from leptonai.training.pytorch.profile import measure_core_flops
    from leptonai.training.tuning import untuned

    data = job.load_data()
    name, model = _build(job, assignment["threads"])
    framework = FRAMEWORKS[name]()
    private = None if job.privacy is None else scout_private(job, name, model, data)
    workload, unused = framework.profile(job, data, model)
    workload = dataclasses.replace(workload, optimizer_states=_optimizer_states(job))
    tables = scout_tables(job, name, model)
    found = identity(
        job, model_shapes=_shapes(model), data=data.fingerprint(), num_examples=len(data.train), tables=tables
    )
    resume, damaged = _look_for_checkpoint(assignment["resume_dir"])
    threads = assignment["threads"]
    # A plan may be for another machine's GPUs; what needs a device is then looked at on this one's CPU.
    device = assignment["device"] if torch.cuda.is_available() else "cpu"
    if private is not None:
        tuning = untuned(job, threads=threads, why="private steps are not compiled")
        tuning = dataclasses.replace(tuning, compile=False)
    elif assignment["autotune"]:
        tuning = framework.tune(
            job, data, threads=threads, num_workers=assignment["num_workers"], device=device
        )
    else:
        tuning = untuned(job, threads=threads)
    if tables and name == "tensorflow":
        tuning = dataclasses.replace(tuning, compile=False)  # XLA cannot call out for rows
    served = None
    if job.parameter_server is not None:
        place = Place(device=device, some_unused=bool(unused))
        served = {**scout_served(job, framework, tuning, place), "tables": tables}
    num_examples = len(data.train) if private is None else private["num_examples"]
    return {
        "served": served,
        "private": private,
        "task": job.name,
        "framework": name,
        "identity": found,
        "workload": workload.to_json(),
        "some_unused": bool(unused),
        "total_steps": job.total_steps(num_examples),
        "steps_per_epoch": job.steps_per_epoch(num_examples),
        "tuning": dataclasses.asdict(tuning),
        "core_flops": measure_core_flops(),
        "num_gpus": torch.cuda.device_count(),
        "resume": resume,
        "damaged": damaged,
    }


def _optimizer_states(job: TrainJob) -> float:
    """Numbers the optimiser keeps for each parameter; of one that the job makes itself, as many as Adam."""
    from leptonai.training.optimizers import Optimizer
    from leptonai.training.parameter_server.kernels import num_states

    return float(num_states(job.optimizer)) if isinstance(job.optimizer, Optimizer) else 2.0


def _build(job: TrainJob, threads: int) -> tuple[FrameworkName, Any]:
    import torch

    torch.set_num_threads(threads)
    torch.manual_seed(job.seed)
    model = job.model()
    name = framework_of(model)
    if name == "pytorch":
        from leptonai.training.pytorch.learner import build_model

        model = build_model(job)
    return name, model


def _shapes(model: Any) -> dict[str, tuple[int, ...]]:
    if hasattr(model, "state_dict"):
        return {
            key: tuple(value.shape) for key, value in model.state_dict().items() if hasattr(value, "shape")
        }
    return {f"{index}/{value.path}": tuple(value.shape) for index, value in enumerate(model.weights)}


def _look_for_checkpoint(directory: str | None) -> tuple[dict[str, Any] | None, list[dict[str, str]]]:
    """The newest checkpoint that is whole, and the damaged ones passed over."""
    if directory is None:
        return None, []
    from leptonai.training.checkpoint import DIGEST_NAME, CheckpointStore

    damaged: list[dict[str, str]] = []
    store = CheckpointStore(Path(directory) / "checkpoints", keep=1)
    for path in reversed(store.list()):
        try:
            found = store.load(path)
        except Fault as error:
            damaged.append({"path": str(path), "reason": error.message})
            continue
        digest = (path / DIGEST_NAME).read_text().split()[0]
        return {"step": found.step, "path": str(path), "digest": digest}, damaged
    if damaged:
        raise Fault(
            f"{directory}: every checkpoint is damaged: {damaged[0]['reason']}",
            hint="start the run anew in another directory",
        )
    return None, damaged
