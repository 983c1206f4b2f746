"""Which layout is best: a job's traced work, or a transformer in six numbers, searched over a cluster's devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leptonai.compute.cluster import Cluster
from leptonai.compute.forecast import Forecast
from leptonai.compute.hardware.catalogue import find
from leptonai.compute.hardware.machines import job_device, to_accelerator
from leptonai.compute.interruptions import Interruptions, expected_interruptions
from leptonai.compute.plan import Plan, RunPrecision
from leptonai.compute.prediction.explained import PHASE_SOURCES
from leptonai.compute.prediction.local_predictor import candidates
from leptonai.compute.prediction.machine import Machine
from leptonai.compute.prediction.memory import FLOAT32_ADAM, MIXED_ADAM
from leptonai.compute.prediction.workload_step import SOURCES, WorkloadPredictor
from leptonai.compute.search.answer import SearchResult
from leptonai.compute.search.rows import Goal
from leptonai.compute.search.search import search
from leptonai.compute.search.space import Space
from leptonai.compute.topology.of_cluster import machine_of
from leptonai.compute.transformer import Transformer
from leptonai.compute.workload import Workload
from leptonai.core.errors import InputError
from leptonai.launch.forecasting import correction_of, predict, served_word
from leptonai.launch.rates import job_key, open_rates, rates_of

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A search and what it was about.

    Args:
        machine: the devices as the search saw them.
        result: best layout, front, rejected families.
        interruptions: what failures cost the best layout.
        num_steps: of the whole run; None: not known.
        sources: what each phase's seconds rest on, in words.
    """

    machine: Machine
    result: SearchResult
    interruptions: Interruptions
    num_steps: int | None = None
    sources: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready values."""
        device = self.machine.device
        return {
            **self.result.to_json(),
            "num_steps": self.num_steps,
            "interruptions": dataclasses.asdict(self.interruptions),
            "machine": {
                "device": device.name, "num_nodes": self.machine.num_nodes,
                "devices_per_node": self.machine.devices_per_node, "memory_bytes": device.memory_bytes,
                "currency": self.machine.currency,
            },
        }  # fmt: skip


SECONDS_PER_HOUR = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerChoice:
    """So many workers of so many threads on this machine, and what a step of theirs should take.

    ``step_price`` is in US dollars; None: the machine has no price.
    """

    num_workers: int
    threads: int
    forecast: Forecast
    step_price: float | None = None

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {"num_workers": self.num_workers, "threads": self.threads, "forecast": self.forecast.to_json(),
                "step_price": self.step_price}  # fmt: skip


def has_accelerators(cluster: Cluster) -> bool:
    """Whether any node declares a GPU or TPU; then layouts are searched, not workers of this machine."""
    return any(node.num_devices("gpu") + node.num_devices("tpu") for node in cluster.nodes)


def consistency_of(plan: Plan) -> tuple[str, ...]:
    """Modes that a search may take for this job: bsp, and its own where it has a parameter server."""
    own = None if plan.servers is None else served_word(plan.servers.consistency)
    return ("bsp",) if own in (None, "bsp") else ("bsp", str(own))


def worker_choices(
    plan: Plan, cluster: Cluster, *, framework: str, home: Path, goal: Goal
) -> tuple[WorkerChoice, ...]:
    """Every number of workers and threads that this machine's cores can hold, best first.

    Args:
        plan: of the job; what it computes and how its workers agree stays as it is.
        cluster: whose measurements count, where it has some.
        framework: whose corrections apply.
        home: where this machine's rates are kept.
        goal: ``time``, ``memory``, or ``price`` where the node has one.

    Raises:
        InputError: the machine was not probed, the goal needs a price or power, or the kind of run cannot be predicted.
    """
    price = cluster.nodes[0].price_per_hour
    if goal == "energy":
        raise InputError("the power of this machine is not known", hint="use --goal time, price or memory")
    if goal == "price" and price is None:
        raise InputError(
            f"cluster {cluster.name}: node {cluster.nodes[0].name} has no price",
            hint="write price: (US dollars an hour of the whole node), or use --goal time or memory",
        )
    with open_rates(home) as store:
        measured, correction = rates_of(cluster, store, framework), correction_of(store, framework)
        timed = store.timed(job_key(plan))
    if measured is None:
        raise InputError("this machine's rates are not known", hint="measure them: lepton cluster probe")
    found = []
    for num_workers, threads in candidates(measured, most_workers=plan.workload.global_batch_size):
        tuning = dataclasses.replace(plan.tuning, threads=threads)
        placements = tuple(
            dataclasses.replace(plan.placements[0], rank=rank, threads=threads, cores=())
            for rank in range(num_workers)
        )
        tried = dataclasses.replace(plan, tuning=tuning, placements=placements)
        forecast = predict(tried, measured, correction, timed)
        if forecast is not None:
            cost = None if price is None else price / SECONDS_PER_HOUR * forecast.step_seconds
            found.append(
                WorkerChoice(num_workers=num_workers, threads=threads, forecast=forecast, step_price=cost)
            )
    if not found:
        raise InputError("this kind of run cannot be predicted on this machine", hint="see docs/pitfalls.md")
    if goal == "memory":
        return tuple(sorted(found, key=lambda choice: choice.forecast.memory_bytes * choice.num_workers))
    return tuple(sorted(found, key=lambda choice: choice.forecast.step_seconds))  # the node costs the same


def answer_workload(
    workload: Workload,
    cluster: Cluster,
    *,
    goal: Goal,
    precision: RunPrecision = "float32",
    consistency: tuple[str, ...] = ("bsp",),
    on_progress: Progress = lambda done, total: None,
) -> Answer:
    """The best layouts of a traced job on a cluster of equal accelerators.

    Raises:
        InputError: the cluster's nodes differ or lack rates, nothing fits, or the goal needs prices nobody gave.
    """
    machine = _in_precision(machine_of(cluster), precision)
    space = Space(
        num_devices=device_counts(machine.num_devices),
        devices_per_node=machine.devices_per_node,
        global_batch=workload.global_batch_size,
        num_layers=max(len(workload.layers), 1),
        max_interleave=1,
        recompute=("none", "full"),
        sequence_parallel=(False,),
        consistency=consistency,
    )
    result = search(
        space,
        WorkloadPredictor(workload, machine),
        memory_limit_bytes=machine.device.memory_bytes,
        goal=goal,
        currency=machine.currency,
        on_progress=on_progress,
    )
    kept = FLOAT32_ADAM.parameter_bytes + FLOAT32_ADAM.optimizer_bytes
    return Answer(
        machine=machine, result=result, num_steps=workload.total_steps, sources=_sources(result, SOURCES),
        interruptions=_interruptions(machine, result, workload.num_parameters * kept),
    )  # fmt: skip


def answer_transformer(
    model: Transformer,
    cluster: Cluster,
    *,
    global_batch: int,
    goal: Goal,
    on_progress: Progress = lambda done, total: None,
) -> Answer:
    """The best layouts of a transformer on a cluster of equal accelerators.

    Raises:
        InputError: as :func:`answer_workload`.
    """
    from leptonai.compute.search.transformers import plan_transformer, transformer_space

    if global_batch < 1:
        raise InputError(f"expected a batch >= 1, found {global_batch}")
    machine = machine_of(cluster)
    space = dataclasses.replace(
        transformer_space(model, machine, global_batch), num_devices=device_counts(machine.num_devices)
    )
    result = plan_transformer(model, machine, global_batch, goal=goal, space=space, on_progress=on_progress)
    kept = MIXED_ADAM.optimizer_bytes  # among them the float32 copy that the parameters come from
    return Answer(
        machine=machine, result=result, sources=_sources(result, PHASE_SOURCES),
        interruptions=_interruptions(machine, result, model.num_parameters * kept),
    )  # fmt: skip


def _in_precision(machine: Machine, precision: RunPrecision) -> Machine:
    """The machine with its devices' peak for this arithmetic, unless a person wrote the peak."""
    device = machine.device
    try:
        entry = find(device.name)
    except InputError:  # no accelerator is named: the cluster file's own figures count
        return machine
    if device.peak_flops != to_accelerator(entry).peak_flops:
        return machine
    peak = job_device(entry, precision).peak_flops
    return dataclasses.replace(machine, device=dataclasses.replace(device, peak_flops=peak))


def device_counts(num_devices: int) -> tuple[int, ...]:
    """All of them, and halves of that as long as they are whole: fewer devices may be cheaper, and even faster.

    >>> device_counts(24)
    (3, 6, 12, 24)
    """
    counts = [num_devices]
    while counts[-1] % 2 == 0:
        counts.append(counts[-1] // 2)
    return tuple(reversed(counts))


def _sources(result: SearchResult, known: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """Of the phases that the best layout has."""
    phases = [phase.name for phase in result.best.phases if phase.seconds]
    return tuple((name, known[name]) for name in phases if name in known)


def _interruptions(machine: Machine, result: SearchResult, state_bytes: float) -> Interruptions:
    num_devices = result.best.layout.num_devices
    num_nodes = -(-num_devices // machine.devices_per_node)
    return expected_interruptions(num_devices=num_devices, num_nodes=num_nodes, state_bytes=state_bytes)
