"""What a network is designed for: a transformer by its numbers, or a job whose model is traced."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from leptonai.core.errors import InputError

if TYPE_CHECKING:
    from leptonai.compute.plan import Plan, RunPrecision
    from leptonai.compute.prediction.machine import Machine
    from leptonai.compute.transformer import Transformer
    from leptonai.compute.workload import Workload

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What shall run.

    Args:
        name: for people.
        batch: examples of one optimiser step, >= 1.
        step_seconds: of its best layout on a machine; told (layouts seen, all there are) on the way.
        precision: of a job's arithmetic; None: the fastest in which the device trains.
    """

    name: str
    batch: int
    step_seconds: Callable[[Machine, Progress], float]
    precision: RunPrecision | None = None


def wanted_transformer(name: str, batch: int) -> Wanted:
    """A transformer by name or numbers.

    Raises:
        InputError: nobody knows the name.
    """
    from leptonai.compute.models import find_model

    model = find_model(name)
    return Wanted(
        name=name, batch=batch,
        step_seconds=lambda machine, progress: _transformer_seconds(model, machine, batch, progress),
    )  # fmt: skip


def wanted_job(job: Path, settings: list[str] | None, home: Path) -> Wanted:
    """A job, looked at by a worker of this machine, which builds its model without memory.

    Raises:
        InputError: the job or a setting is wrong, or its model cannot be traced.
    """
    from leptonai.launch.jobs import JobFile

    plan = _traced(job, settings, home)
    work = plan.workload
    if not work.operations:
        raise InputError(f"{job}: its model could not be traced", hint="describe a transformer by --model")
    return Wanted(
        name=JobFile(path=job).task, batch=work.global_batch_size, precision=plan.tuning.precision,
        step_seconds=lambda machine, progress: _job_seconds(work, machine, progress),
    )  # fmt: skip


def _traced(job: Path, settings: list[str] | None, home: Path) -> Plan:
    """What ``lepton plan`` finds on one worker of this machine; nothing is timed, as other devices will train."""
    from leptonai.cli.options import home_directory
    from leptonai.cli.train import engine_for
    from leptonai.compute.cluster import Cluster, Device, Node
    from leptonai.launch.jobs import JobFile
    from leptonai.launch.request import TrainRequest
    from leptonai.launch.run import make_plan

    cores = Device(kind="cpu", cores=len(os.sched_getaffinity(0)))
    here = Cluster(name="here", nodes=(Node(name="here", devices=(cores,)),))
    request = TrainRequest(
        job=JobFile(path=job), cluster=here, cluster_text="",
        overrides=tuple(settings or ()), autotune=False, home=home_directory(home),
        ledger_url=os.environ.get("LEPTON_WORKSPACE"),
    )  # fmt: skip
    with engine_for(job, home) as engine:
        return make_plan(request, engine=engine)


def _transformer_seconds(model: Transformer, machine: Machine, batch: int, progress: Progress) -> float:
    """The step time of the best layout on all devices, out of those that ``lepton plan`` searches."""
    from leptonai.compute.search.transformers import plan_transformer, transformer_space

    space = transformer_space(model, machine, batch)
    found = plan_transformer(model, machine, batch, space=space, top=1, on_progress=progress)
    return found.best.step_seconds


def _job_seconds(work: Workload, machine: Machine, progress: Progress) -> float:
    """The step time of the best layout on all devices, out of those a traced model can run in."""
    from leptonai.compute.prediction.workload_step import WorkloadPredictor
    from leptonai.compute.search.search import search
    from leptonai.compute.search.space import Space

    space = Space(
        num_devices=(machine.num_devices,), devices_per_node=machine.devices_per_node,
        global_batch=work.global_batch_size, num_layers=max(len(work.layers), 1), max_interleave=1,
        recompute=("none", "full"), sequence_parallel=(False,),
    )  # fmt: skip
    found = search(
        space, WorkloadPredictor(work, machine), memory_limit_bytes=machine.device.memory_bytes, top=1,
        on_progress=progress,
    )  # fmt: skip
    return found.best.step_seconds
