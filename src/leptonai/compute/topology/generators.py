"""Networks in known shapes, from equal nodes; :func:`generate` builds whatever a cluster file's ``topology`` names."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from leptonai.compute.cluster import Fabric, ShapeKind
from leptonai.compute.topology.fabrics import Ports, join_fabric
from leptonai.compute.topology.graph import DEVICE, INNER, NIC, Builder, Network
from leptonai.core.errors import InputError

DIRECT_KINDS = ("star", "ring", "mesh", "torus")
"""Shapes whose cables run from node to node, without switches between."""
MOST_DEVICES = 200_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Nodes:
    """Equal nodes to join.

    Args:
        num_nodes: >= 1.
        devices: of each, >= 1.
        bandwidth: bytes per second that a device sends to the others of its node, one way, > 0.
        latency: seconds of the smallest message between two devices of a node, >= 0.
        names: of the nodes; empty: ``node-0`` and so on.
        device_word: what devices are named after, such as ``gpu``.
    """

    num_nodes: int
    devices: int = 1
    bandwidth: float = math.inf
    latency: float = 0.0
    names: tuple[str, ...] = ()
    device_word: str = "gpu"

    def __post_init__(self) -> None:
        if self.num_nodes < 1 or self.devices < 1:
            raise InputError(
                f"nodes: expected at least one node of at least one device, found {self.num_nodes} of {self.devices}"
            )
        if self.num_nodes * self.devices > MOST_DEVICES:
            raise InputError(
                f"nodes: expected at most {MOST_DEVICES} devices, found {self.num_nodes * self.devices}"
            )
        if self.names and len(self.names) != self.num_nodes:
            raise InputError(f"nodes: expected {self.num_nodes} names, found {len(self.names)}")
        if not self.bandwidth > 0 or (self.devices > 1 and not math.isfinite(self.bandwidth)):
            raise InputError(
                f"nodes: expected a rate among the {self.devices} devices of a node > 0, found {self.bandwidth:g}",
                hint="write interconnect: 450GB/s at the node",
            )

    @property
    def node_names(self) -> tuple[str, ...]:
        """Names of the nodes."""
        return self.names or tuple(f"node-{index}" for index in range(self.num_nodes))


def generate(kind: ShapeKind, nodes: Nodes, fabric: Fabric | None = None, *, bandwidth: float = 0.0,
             latency: float = 0.0) -> Network:  # fmt: skip
    """The network of equal nodes in a named shape.

    Args:
        kind: the shape.
        nodes: the nodes.
        fabric: how switches or a torus join them; None for ``star``, ``ring`` and ``mesh``.
        bandwidth: of the cables of those three, bytes per second, one way, > 0.
        latency: of them, seconds, >= 0.

    Raises:
        InputError: a figure lies outside its range or does not fit the number of nodes.

    >>> network = generate("ring", Nodes(num_nodes=4), bandwidth=1e9)
    >>> len(network.devices), network.num_links
    (4, 8)
    """
    builder = Builder()
    if kind in DIRECT_KINDS:
        hubs = _hubs(builder, nodes)
        rate, wait = (
            (fabric.bandwidth_bytes_per_second, fabric.latency_seconds) if fabric else (bandwidth, latency)
        )
        for first, second in _direct_pairs(kind, nodes.num_nodes, fabric):
            builder.join(hubs[first], hubs[second], rate, wait)
        return builder.build()
    if fabric is None:
        raise InputError(f"{kind}: expected how switches join the nodes")
    join_fabric(builder, _ports(builder, nodes, fabric), fabric)
    return builder.build()


def torus_dims(num_nodes: int) -> tuple[int, int, int]:
    """Three lengths with this product, as near a cube as can be, longest first.

    >>> torus_dims(64), torus_dims(12)
    ((4, 4, 4), (3, 2, 2))
    """
    found = (num_nodes, 1, 1)
    for short in range(1, round(num_nodes ** (1 / 3)) + 1):
        if num_nodes % short:
            continue
        rest = num_nodes // short
        middle = next(each for each in range(math.isqrt(rest), 0, -1) if rest % each == 0)
        dims = tuple(sorted((rest // middle, middle, short), reverse=True))
        if sum(dims) < sum(found):
            found = (dims[0], dims[1], dims[2])
    return found


def _direct_pairs(kind: str, count: int, fabric: Fabric | None) -> list[tuple[int, int]]:
    if kind == "star":
        return [(0, each) for each in range(1, count)]
    if kind == "mesh":
        return list(itertools.combinations(range(count), 2))
    if kind == "ring":
        return _circle(list(range(count)))
    dims = (fabric.dims if fabric else ()) or torus_dims(count)
    if math.prod(dims) != count:
        raise InputError(f"torus: expected lengths with product {count}, found {list(dims)}")
    pairs = []
    strides = [math.prod(dims[axis + 1 :]) for axis in range(len(dims))]
    for axis, length in enumerate(dims):
        for start in range(count):
            if start // strides[axis] % length == 0:
                pairs += _circle([start + step * strides[axis] for step in range(length)])
    return pairs


def _circle(places: list[int]) -> list[tuple[int, int]]:
    """Each to the next and the last to the first; two have one link, not one each way."""
    pairs = list(itertools.pairwise(places))
    return [*pairs, (places[-1], places[0])] if len(places) > 2 else pairs


def _devices(builder: Builder, nodes: Nodes, index: int) -> list[int]:
    name = nodes.node_names[index]
    builder.node_names.append(name)
    word = nodes.device_word
    if nodes.devices == 1:
        return [builder.vertex(name, DEVICE, index)]
    return [builder.vertex(f"{name}/{word}{place}", DEVICE, index) for place in range(nodes.devices)]


def _inner(builder: Builder, nodes: Nodes, name: str, devices: list[int], index: int) -> int:
    """The vertex through which a node's devices reach each other: a switch, or the only device itself."""
    if len(devices) == 1:
        return devices[0]
    switch = builder.vertex(f"{name}/switch", INNER, index)
    for device in devices:
        builder.join(device, switch, nodes.bandwidth, nodes.latency / 2)
    return switch


def _hubs(builder: Builder, nodes: Nodes) -> list[int]:
    made = []
    for index, name in enumerate(nodes.node_names):
        made.append(_inner(builder, nodes, name, _devices(builder, nodes, index), index))
    return made


def _ports(builder: Builder, nodes: Nodes, fabric: Fabric) -> Ports:
    """Nodes with their network cards: rails have one at each device, others share theirs by the inner switch."""
    if fabric.kind == "islands" and nodes.num_nodes % fabric.island:
        raise InputError(f"islands: expected a divisor of the {nodes.num_nodes} nodes, found {fabric.island}")
    rate, rails = fabric.bandwidth_bytes_per_second, fabric.kind == "rail_optimised"
    cards, shared = [], []
    for index, name in enumerate(nodes.node_names):
        devices = _devices(builder, nodes, index)
        if fabric.kind == "islands" and fabric.island > 1:
            shared += devices
            inner = -1
            if (index + 1) % fabric.island == 0:
                _island(builder, nodes, index // fabric.island, shared)
                shared = []
        else:
            inner = _inner(builder, nodes, name, devices, index)
        if rails:
            card = [builder.vertex(f"{name}/nic{place}", NIC, index) for place in range(len(devices))]
            for device, each in zip(devices, card, strict=True):
                builder.join(device, each, rate, 0.0)
            cards.append(card)
            continue
        # A dragonfly's cards go to different routers; elsewhere a node's cards take the same way, as one.
        apart = fabric.kind == "dragonfly" and fabric.nics > 1
        names = [f"{name}/nic{place}" for place in range(fabric.nics)] if apart else [f"{name}/nic"]
        card = [builder.vertex(each, NIC, index) for each in names]
        ends = devices if inner < 0 else [inner]
        for end, each in itertools.product(
            ends, card
        ):  # in an island a node's devices share the cards directly
            builder.join(end, each, rate if apart else rate * fabric.nics, 0.0)
        cards.append(card)
    return Ports(cards=cards, cables=1 if rails or fabric.kind == "dragonfly" else fabric.nics)


def _island(builder: Builder, nodes: Nodes, number: int, devices: list[int]) -> None:
    if len(devices) == 1:
        return
    switch = builder.vertex(f"island-{number}/switch", INNER)
    for device in devices:
        builder.join(device, switch, nodes.bandwidth, nodes.latency / 2)
