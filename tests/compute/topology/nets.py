"""Networks that several tests share."""

from __future__ import annotations

from typing import Any

from leptonai.compute.cluster import Fabric, FabricKind
from leptonai.compute.topology.generators import Nodes, generate
from leptonai.compute.topology.graph import Builder, Network

RATE, WAIT = 50e9, 1e-6
INSIDE = 400e9


def fabric(kind: FabricKind, **more: Any) -> Fabric:
    return Fabric(kind=kind, bandwidth_bytes_per_second=RATE, latency_seconds=WAIT, **more)


def net(kind: FabricKind, num_nodes: int, *, devices: int = 1, **more: Any) -> Network:
    nodes = Nodes(num_nodes=num_nodes, devices=devices, bandwidth=INSIDE)
    return generate(kind, nodes, fabric(kind, **more))


def plain(kind: Any, num_nodes: int, *, devices: int = 1) -> Network:
    nodes = Nodes(num_nodes=num_nodes, devices=devices, bandwidth=INSIDE)
    return generate(kind, nodes, bandwidth=RATE, latency=WAIT)


def line(*rates: float) -> Network:
    """Devices in a line, joined by links of these rates and 1 us each."""
    builder = Builder()
    for place in range(len(rates) + 1):
        builder.node_names.append(f"n{place}")
        builder.vertex(f"n{place}", "device", place)
    for place, rate in enumerate(rates):
        builder.join(place, place + 1, rate, WAIT)
    return builder.build()
