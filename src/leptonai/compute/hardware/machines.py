"""Catalogue entries as the machines that predictors see."""

from __future__ import annotations

import math

from leptonai.compute.hardware.entries import PRECISIONS, AcceleratorEntry, Instance, Precision
from leptonai.compute.plan import RunPrecision
from leptonai.compute.prediction.machine import Accelerator, Level, Machine
from leptonai.core.errors import InputError

TRAINING_PRECISIONS: tuple[Precision, ...] = ("bf16", "fp16", "fp32")
"""What training would compute in, best first: 16 bits where there are matrix units for them."""
JOB_PEAKS: dict[RunPrecision, tuple[Precision, ...]] = {"float32": ("fp32",), "bfloat16": ("bf16", "fp16")}
"""Peaks of the catalogue for the arithmetic of a job, the first that there is. PyTorch multiplies float32 matrices
without tf32 unless told otherwise, so ``float32`` is ``fp32``."""
DEFAULT_IN_NODE_LATENCY_SECONDS = 8e-6
"""Where the catalogue has none; as cli99/llm-analysis has it for every GPU (gpu_configs at commit b60b392)."""
DEFAULT_NETWORK_LATENCY_SECONDS = 3e-5
"""Where the catalogue has none; an assumption, as TCP in a data centre takes some tens of microseconds."""
COPIES_OF_SHARED_MEMORY = 2
"""A message between processors that share memory is written once and read once."""


def training_precision(entry: AcceleratorEntry) -> Precision:
    """The first of :data:`TRAINING_PRECISIONS` whose rate is published.

    Raises:
        InputError: it has none of them.
    """
    for precision in TRAINING_PRECISIONS:
        if entry.peak(precision) is not None:
            return precision
    raise InputError(
        f"{entry.name} has no rate for {', '.join(TRAINING_PRECISIONS)}",
        hint="add one to the catalogue file that describes it",
    )


def to_accelerator(entry: AcceleratorEntry, precision: Precision | None = None) -> Accelerator:
    """The device as predictors see it.

    Args:
        entry: from the catalogue.
        precision: what training computes in; None: :func:`training_precision`.

    Raises:
        InputError: its rate in this precision is not published.
    """
    wanted = precision or training_precision(entry)
    peak = entry.peak(wanted)
    if peak is None:
        known = [each for each in PRECISIONS if entry.peak(each) is not None]
        raise InputError(f"{entry.name} has no rate for {wanted!r}", hint=f"it has: {', '.join(known)}")
    return Accelerator(
        name=entry.name,
        peak_flops=peak.value,
        memory_bytes=entry.memory_bytes.value,
        memory_bandwidth_bytes_per_second=entry.memory_bandwidth_bytes_per_second.value,
        power_watts=entry.power_watts.value if entry.power_watts else 0.0,
    )


def job_device(entry: AcceleratorEntry, precision: RunPrecision) -> Accelerator:
    """The device as it computes a job of this precision.

    Raises:
        InputError: its rate in this precision is not published.
    """
    known = [each for each in JOB_PEAKS[precision] if entry.peak(each) is not None]
    if not known:
        other = next(each for each in JOB_PEAKS if each != precision)
        raise InputError(
            f"the catalogue gives no peak of {entry.name} for a job in {precision}",
            hint=f"add one by a file of yours, or plan for precision={other}",
        )
    return to_accelerator(entry, known[0])


def machine_from(
    instance: Instance, num_nodes: int, precision: Precision | None = None, *, spot: bool = False
) -> Machine:
    """So many of one instance, as predictors see them.

    Args:
        instance: from the catalogue.
        num_nodes: >= 1.
        precision: what training computes in; None: :func:`training_precision`.
        spot: at the spot price instead of that on demand.

    Raises:
        InputError: ``num_nodes`` is out of range or more than one network joins; several nodes, but their network
            is not known; or the rate in this precision is not published.
    """
    if num_nodes < 1:
        raise InputError(f"machine_from: expected num_nodes >= 1, found {num_nodes}")
    if num_nodes > most_nodes(instance):
        few = "its network is not published, so it works alone" if not instance.network_bytes_per_second else (
            f"one network joins at most {instance.max_nodes} of them"
        )  # fmt: skip
        raise InputError(f"{instance.name}: {num_nodes} nodes are too many: {few}")
    price = instance.price(spot=spot)
    in_node = in_node_level(instance.accelerator)
    return Machine(
        device=to_accelerator(instance.accelerator, precision),
        devices_per_node=instance.count,
        num_nodes=num_nodes,
        in_node=in_node,
        between_nodes=_between_nodes(instance) or in_node,
        price_per_device_hour=None if price is None else price / instance.count,
        currency=instance.currency,
    )


def most_nodes(instance: Instance) -> float:
    """Nodes of this instance that can work together; infinite where no limit is known."""
    if instance.network_bytes_per_second is None:
        return 1
    return math.inf if instance.max_nodes is None else instance.max_nodes


def in_node_level(entry: AcceleratorEntry) -> Level:
    """Links among devices of a node; without an interconnect, processors exchange through memory."""
    links = entry.interconnect
    if links is None:
        rate = entry.memory_bandwidth_bytes_per_second.value / COPIES_OF_SHARED_MEMORY
        return Level(bandwidth_bytes_per_second=rate)
    latency = links.latency_seconds
    return Level(
        bandwidth_bytes_per_second=links.bandwidth_bytes_per_second.value,
        latency_seconds=latency.value if latency else DEFAULT_IN_NODE_LATENCY_SECONDS,
    )


def _between_nodes(instance: Instance) -> Level | None:
    network, latency = instance.network_bytes_per_second, instance.network_latency_seconds
    if network is None:
        return None
    return Level(
        bandwidth_bytes_per_second=network.value,
        latency_seconds=latency.value if latency else DEFAULT_NETWORK_LATENCY_SECONDS,
    )
