"""The machine as predictors see it: equal devices, equal nodes, two levels of links."""

from __future__ import annotations

import math
from dataclasses import dataclass

from leptonai.core.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Accelerator:
    """What one device can do, from its data sheet.

    Args:
        name: as in the catalogue.
        peak_flops: dense FLOP/s in the precision of training, > 0.
        memory_bytes: > 0.
        memory_bandwidth_bytes_per_second: > 0.
        power_watts: under load; 0: not known.
    """

    name: str
    peak_flops: float
    memory_bytes: float
    memory_bandwidth_bytes_per_second: float
    power_watts: float = 0.0

    def __post_init__(self) -> None:
        _check_positive(self, ("peak_flops", "memory_bytes", "memory_bandwidth_bytes_per_second"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """Links of one level: among devices of a node, or among nodes.

    Args:
        bandwidth_bytes_per_second: what one device (in a node) or one node (between nodes) sends, one way, > 0.
        latency_seconds: of the smallest message, >= 0.
        measured_all_reduces: (num devices, message bytes ascending, seconds) measured here; may be empty.
    """

    bandwidth_bytes_per_second: float
    latency_seconds: float = 0.0
    measured_all_reduces: tuple[tuple[int, tuple[float, ...], tuple[float, ...]], ...] = ()

    def __post_init__(self) -> None:
        if not self.bandwidth_bytes_per_second > 0:  # infinite is a limit that tests use
            raise InputError(f"Level: expected bandwidth > 0, found {self.bandwidth_bytes_per_second}")
        if not (self.latency_seconds >= 0 and math.isfinite(self.latency_seconds)):
            raise InputError(f"Level: expected latency >= 0, found {self.latency_seconds}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Equal nodes of equal devices.

    Args:
        device: each device.
        devices_per_node: >= 1.
        num_nodes: >= 1.
        in_node: links among devices of a node.
        between_nodes: links among nodes; shared by the node's devices.
        price_per_device_hour: in ``currency``; None: not known.
        currency: of the price.
    """

    device: Accelerator
    devices_per_node: int
    num_nodes: int
    in_node: Level
    between_nodes: Level
    price_per_device_hour: float | None = None
    currency: str = "USD"

    def __post_init__(self) -> None:
        if self.devices_per_node < 1 or self.num_nodes < 1:
            raise InputError(
                f"Machine: expected devices_per_node and num_nodes >= 1, found {self.devices_per_node} "
                f"and {self.num_nodes}"
            )
        if self.price_per_device_hour is not None and not self.price_per_device_hour >= 0:
            raise InputError(f"Machine: expected a price >= 0, found {self.price_per_device_hour}")

    @property
    def num_devices(self) -> int:
        """Devices of all nodes."""
        return self.devices_per_node * self.num_nodes


def _check_positive(value: object, names: tuple[str, ...]) -> None:
    for name in names:
        found = getattr(value, name)
        if not found > 0:
            raise InputError(f"{type(value).__name__}: expected {name} > 0, found {found}")
