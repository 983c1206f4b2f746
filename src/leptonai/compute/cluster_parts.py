"""What a cluster file leaves to be worked out: names of equal nodes, figures of named accelerators, fitting shapes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from leptonai.compute.cluster import Device
from leptonai.core.errors import InputError
from leptonai.core.files import Problem, problem

if TYPE_CHECKING:
    from leptonai.compute.hardware.entries import AcceleratorEntry, Precision

MAX_NODES = 65536
"""Equal nodes that one entry may stand for: above any machine built, below what exhausts memory."""
TRAINING_PRECISIONS: tuple[Precision, ...] = ("bf16", "fp16", "tf32", "fp32")
"""Precisions whose peak counts as a device's, the first that it has."""
_ONLY_FOR = {
    "nics": ("switch", "fat_tree", "dragonfly", "islands"),
    "radix": ("switch", "fat_tree", "rail_optimised", "dragonfly", "islands"),
    "oversubscription": ("fat_tree", "rail_optimised"),
    "dims": ("torus",),
    "island": ("islands",),
}


def node_names(name: str, count: int) -> tuple[str, ...]:
    """Names of the nodes that one entry of a file stands for.

    >>> node_names("gpu", 1), node_names("gpu", 2)
    (('gpu',), ('gpu-0', 'gpu-1'))
    """
    return (name,) if count == 1 else tuple(f"{name}-{index}" for index in range(count))


def check_accelerator(name: str) -> str:
    """A field validator: the name must be in the hardware catalogue, which offers the nearest otherwise."""
    from leptonai.compute.hardware.catalogue import find

    try:
        find(name)
    except InputError as error:
        raise problem(error.message, hint=error.hint) from error
    return name


def fill_device(device: Device) -> Device:
    """The device with what its accelerator's entry says where the file says nothing.

    Raises:
        InputError: the accelerator is of another kind, or has no published peak for training.
    """
    if device.accelerator is None:
        return device
    from leptonai.compute.hardware.catalogue import find

    entry = find(device.accelerator)
    if entry.kind != device.kind:
        raise InputError(
            f"device: {device.accelerator!r} is a {entry.kind}, not a {device.kind}",
            hint=f"kind: {entry.kind}",
        )
    return dataclasses.replace(
        device,
        memory_bytes=device.memory_bytes or int(entry.memory_bytes.value),
        peak_flops=device.peak_flops or _peak(entry),
        memory_bandwidth_bytes_per_second=device.memory_bandwidth_bytes_per_second
        or entry.memory_bandwidth_bytes_per_second.value,
    )


def interconnect_of(devices: tuple[Device, ...]) -> float | None:
    """What the catalogue says one of these devices sends to its neighbours; None: it says nothing."""
    names = {device.accelerator for device in devices if device.accelerator}
    if not names:
        return None
    from leptonai.compute.hardware.catalogue import find

    found = [find(name).interconnect for name in names]
    rates = [each.bandwidth_bytes_per_second.value for each in found if each is not None]
    return min(rates) if rates else None


def _peak(entry: AcceleratorEntry) -> float:
    """In the fastest precision that trains; of one core for a CPU."""
    for precision in TRAINING_PRECISIONS:
        if (peak := entry.peak(precision)) is not None:
            return peak.value / (entry.cores or 1)
    raise InputError(
        f"device: the catalogue has no peak of {entry.name!r} for training", hint="write peak: ..."
    )


def check_topology(topology: object, num_nodes: int) -> Iterator[Problem]:
    """Problems of the raw ``topology`` of a file: keys that its kind does not have, dimensions that do not fit.

    Args:
        topology: whatever the file holds.
        num_nodes: nodes of the file, all counts together.
    """
    if not isinstance(topology, Mapping):
        return
    kind = topology.get("kind")
    for key, kinds in _ONLY_FOR.items():
        if key in topology and isinstance(kind, str) and kind not in kinds:
            message = f"{key} is not for kind {kind}, only for {', '.join(kinds)}"
            yield Problem(at=("topology", key), message=message, hint="leave it out")
    dims, island = topology.get("dims"), topology.get("island")
    whole = isinstance(dims, tuple) and dims and all(type(length) is int for length in dims)
    if isinstance(dims, tuple) and whole and (len(dims) == 1 or math.prod(dims) != num_nodes):
        message = f"dims: expected two or three lengths with product {num_nodes}, the number of nodes"
        yield Problem(at=("topology", "dims"), message=f"{message}, found {list(dims)}")
    if type(island) is int and island > 0 and num_nodes % island:
        message = f"island: expected a divisor of the {num_nodes} nodes, found {island}"
        yield Problem(at=("topology", "island"), message=message)
