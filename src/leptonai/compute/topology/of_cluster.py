"""The network of a cluster file, and the two-level machine that predictors see in it."""

from __future__ import annotations

import math

from leptonai.compute.cluster import Cluster, Device, Node
from leptonai.compute.prediction.machine import Accelerator, Level, Machine
from leptonai.compute.topology.contention import contend
from leptonai.compute.topology.generators import Nodes, generate
from leptonai.compute.topology.graph import DEVICE, INNER, Builder, Network
from leptonai.compute.topology.paths import best_path
from leptonai.core.errors import InputError

PROBE_BYTES = 1e9
"""Message of the collective that finds a fabric's rate; any size gives the same, as latency is left out."""
_RATE_HINT = "write interconnect: 450GB/s at the node, or accelerator: at its device"


def from_cluster(cluster: Cluster) -> Network:
    """The network of a cluster: devices in nodes, and the links or the generated fabric between nodes.

    A node's devices are its GPUs or TPUs if it has any; else its CPUs, which count as one device unless the node
    gives a rate between them. They join at one switch inside the node.

    Raises:
        InputError: some nodes cannot reach the others, a rate is missing, or a generated fabric joins unequal nodes.
    """
    if cluster.fabric is not None:
        return generate(cluster.fabric.kind, _equal_nodes(cluster), cluster.fabric)
    builder, hubs = Builder(), {}
    for index, node in enumerate(cluster.nodes):
        builder.node_names.append(node.name)
        hubs[node.name] = _join_node(builder, node, index)
    for link in cluster.links:
        first, second = (hubs[end] for end in link.ends)
        builder.join(first, second, link.bandwidth_bytes_per_second, link.latency_seconds)
    return builder.build()


def machine_of(cluster: Cluster) -> Machine:
    """The cluster as equal nodes of equal devices with two levels of links.

    What nodes send each other is what they reach while every device runs a ring all-reduce with the devices of equal
    place in the other nodes, all rings at once: so a torus, an oversubscribed tree or a star count as what they give.

    Raises:
        InputError: the nodes differ, or a rate that predictions need is missing.
    """
    equal_nodes, device = _equal_nodes(cluster), _main_device(cluster.nodes[0])
    if any(_main_device(node) != device for node in cluster.nodes):
        raise InputError(
            f"cluster {cluster.name}: the nodes have different devices",
            hint="predictions are for equal nodes; describe the equal ones in a file of their own",
        )
    network = from_cluster(cluster)
    prices = {node.price_per_hour for node in cluster.nodes}
    price = prices.pop() if len(prices) == 1 else None
    return machine_from(
        network, _accelerator(cluster.nodes[0], device, equal_nodes.devices),
        in_node_bandwidth=equal_nodes.bandwidth, in_node_latency=equal_nodes.latency,
        price_per_device_hour=None if price is None else price / equal_nodes.devices,
    )  # fmt: skip


def machine_from(network: Network, device: Accelerator, *, in_node_bandwidth: float, in_node_latency: float = 0.0,
                 price_per_device_hour: float | None = None) -> Machine:  # fmt: skip
    """The two-level view of a network of equal nodes.

    Args:
        network: where.
        device: each device.
        in_node_bandwidth: bytes per second of a device inside its node, one way; anything where it is alone.
        in_node_latency: seconds.
        price_per_device_hour: in US dollars; None: not known.
    """
    per_node = len(network.devices) // network.num_nodes
    between = between_nodes(network)
    alone = per_node == 1
    in_node = Level(
        bandwidth_bytes_per_second=between.bandwidth_bytes_per_second if alone else in_node_bandwidth,
        latency_seconds=between.latency_seconds if alone else in_node_latency,
    )
    return Machine(
        device=device, devices_per_node=per_node, num_nodes=network.num_nodes, in_node=in_node,
        between_nodes=between if network.num_nodes > 1 else in_node, price_per_device_hour=price_per_device_hour,
    )  # fmt: skip


def between_nodes(network: Network) -> Level:
    """What one node sends to others while all do, and the latency to its neighbour; one node alone has no limit."""
    count = network.num_nodes
    if count == 1:
        return Level(bandwidth_bytes_per_second=math.inf)
    places = [[int(each) for each in network.devices_of(node)] for node in range(count)]
    rings = [list(ring) for ring in zip(*places, strict=True)]
    found = contend(network, rings, "ring", PROBE_BYTES)
    sent = len(rings) * 2 * (count - 1) / count * PROBE_BYTES
    latency = best_path(network, rings[0][0], rings[0][1], prefer="fastest").latency_seconds
    return Level(bandwidth_bytes_per_second=sent / found.bandwidth_seconds, latency_seconds=latency)


def num_devices(node: Node) -> int:
    """Devices that work side by side in a node: GPUs or TPUs, else CPUs where their rate is known, else one."""
    accelerators = node.num_devices("gpu") + node.num_devices("tpu")
    if accelerators:
        return accelerators
    return node.num_devices("cpu") if node.interconnect_bytes_per_second and node.num_devices("cpu") else 1


def _main_device(node: Node) -> Device | None:
    """The devices that count; None: the node has no devices, or several kinds of them."""
    chosen = [device for device in node.devices if device.kind != "cpu"] or list(node.devices)
    return chosen[0] if len(chosen) == 1 else None


def _word(node: Node) -> str:
    device = next((each for each in node.devices if each.kind != "cpu"), None)
    return device.kind if device else "cpu"


def _rate(node: Node) -> float:
    if node.interconnect_bytes_per_second is None and num_devices(node) > 1:
        raise InputError(
            f"node {node.name}: the rate between its {num_devices(node)} devices is missing", hint=_RATE_HINT
        )
    return node.interconnect_bytes_per_second or math.inf


def _join_node(builder: Builder, node: Node, index: int) -> int:
    """Add a node's devices, and return the vertex that stands for it outside."""
    count = num_devices(node)
    if count == 1:
        return builder.vertex(node.name, DEVICE, index)
    rate, latency = _rate(node), node.interconnect_latency_seconds
    devices = [builder.vertex(f"{node.name}/{_word(node)}{place}", DEVICE, index) for place in range(count)]
    switch = builder.vertex(f"{node.name}/switch", INNER, index)
    for device in devices:
        builder.join(device, switch, rate, latency / 2)
    return switch


def _equal_nodes(cluster: Cluster) -> Nodes:
    first = cluster.nodes[0]
    wanted = (num_devices(first), _rate(first), first.interconnect_latency_seconds)
    for node in cluster.nodes[1:]:
        found = (num_devices(node), _rate(node), node.interconnect_latency_seconds)
        if found != wanted:
            raise InputError(
                f"cluster {cluster.name}: nodes {first.name} and {node.name} differ in their devices or their rates",
                hint="a generated fabric and predictions need equal nodes; a list of links joins unequal ones",
            )
    return Nodes(
        num_nodes=len(cluster.nodes), devices=wanted[0], bandwidth=wanted[1], latency=wanted[2],
        names=tuple(node.name for node in cluster.nodes), device_word=_word(first),
    )  # fmt: skip


def _accelerator(node: Node, device: Device | None, side_by_side: int) -> Accelerator:
    if device is None:
        raise InputError(
            f"node {node.name}: predictions need devices of one kind",
            hint="write one entry under devices, with a count",
        )
    together = device.count // side_by_side if device.kind == "cpu" else 1  # sockets that count as one device
    cores = (device.cores or 1) if device.kind == "cpu" else 1
    figures = {
        "peak": device.peak_flops,
        "memory": device.memory_bytes,
        "memory_bandwidth": device.memory_bandwidth_bytes_per_second,
    }
    if missing := [name for name, value in figures.items() if value is None]:
        raise InputError(
            f"node {node.name}: its {device.kind} lacks {', '.join(missing)}",
            hint="write them at the device, or name its accelerator: so that the catalogue gives them",
        )
    return Accelerator(
        name=device.accelerator or device.kind,
        peak_flops=float(figures["peak"] or 0) * cores * together,
        memory_bytes=float(figures["memory"] or 0) * together,
        memory_bandwidth_bytes_per_second=float(figures["memory_bandwidth"] or 0) * together,
        power_watts=_power_watts(device),
    )


def _power_watts(device: Device) -> float:
    if device.accelerator is None:
        return 0.0
    from leptonai.compute.hardware.catalogue import find

    power = find(device.accelerator).power_watts
    return 0.0 if power is None else power.value
