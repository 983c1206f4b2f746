"""A network as arrays: devices, network cards and switches, and the links between them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

DEVICE, NIC, SWITCH, INNER = "device", "nic", "switch", "inner switch"
KINDS = (DEVICE, NIC, SWITCH, INNER)
"""Kinds of vertices; an inner switch joins the devices of one node or island."""
NO_NODE = -1
_SHOWN_NAMES = 3


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Network:
    """V vertices and L directed links; a cable that works both ways is two links.

    Args:
        names: of the vertices, each used once.
        kinds: of the vertices, from :data:`KINDS`.
        nodes: V places in ``node_names``; ``NO_NODE`` for what belongs to none, such as a switch between nodes.
        node_names: names of the nodes.
        source: L vertices that links leave.
        target: L vertices that links enter.
        bandwidth: L rates in bytes per second, one way, all cables of the link together, > 0.
        latency: L times in seconds of the smallest message, >= 0.
        cables: L numbers of parallel cables, >= 1.

    Raises:
        InputError: a rate is missing, negative or not finite (its place is told), a link leads nowhere, or some
            vertices cannot reach the others (both parts are told).
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    nodes: Ints
    node_names: tuple[str, ...]
    source: Ints
    target: Ints
    bandwidth: Floats
    latency: Floats
    cables: Ints

    def __post_init__(self) -> None:
        for name, values in (("bandwidth", self.bandwidth), ("latency", self.latency)):
            wrong = ~np.isfinite(values) | (values <= 0 if name == "bandwidth" else values < 0)
            if wrong.any():
                place = int(np.argmax(wrong))
                least = "> 0" if name == "bandwidth" else ">= 0"
                found = "none" if math.isnan(values[place]) else f"{values[place]:g}"
                raise InputError(
                    f"link {self.link_name(place)}: expected {name} {least}, found {found}",
                    hint="give every link its rate, such as 50GB/s, and a latency of 0s or more",
                )
        if len(set(self.names)) != len(self.names):
            double = next(name for name in self.names if self.names.count(name) > 1)
            raise InputError(f"network: two vertices are named {double!r}")
        if not self.devices.size:
            raise InputError("network: expected at least one device")
        _check_connected(self)

    @property
    def num_vertices(self) -> int:
        """Devices, cards and switches together."""
        return len(self.names)

    @property
    def num_links(self) -> int:
        """Directed links."""
        return len(self.source)

    @property
    def num_nodes(self) -> int:
        """Nodes."""
        return len(self.node_names)

    @property
    def devices(self) -> Ints:
        """Vertices that are devices, in order."""
        return self.of_kind(DEVICE)

    def of_kind(self, kind: str) -> Ints:
        """Vertices of one kind, in order."""
        return np.array([place for place, each in enumerate(self.kinds) if each == kind], np.int64)

    def devices_of(self, node: int) -> Ints:
        """Devices of one node, in order."""
        devices = self.devices
        found: Ints = devices[self.nodes[devices] == node]
        return found

    def link_name(self, link: int) -> str:
        """Both ends of a link, for people."""
        return f"{self.names[self.source[link]]} -> {self.names[self.target[link]]}"

    def place(self, name: str) -> int:
        """The device of this name; a node's name stands for its first device.

        Raises:
            InputError: there is none; the nearest names are offered.
        """
        import difflib

        devices = self.devices
        known = {self.names[each]: int(each) for each in devices}
        if name in known:
            return known[name]
        if name in self.node_names:
            return int(self.devices_of(self.node_names.index(name))[0])
        near = difflib.get_close_matches(name, [*known, *self.node_names], n=3, cutoff=0.5)
        some = ", ".join([*known][:_SHOWN_NAMES])
        raise InputError(
            f"there is no device or node {name!r}",
            hint=f"did you mean {' or '.join(near)}?" if near else f"devices: {some}, ...",
        )


@dataclass(slots=True)
class Builder:
    """A network in the making."""

    names: list[str] = field(default_factory=list)
    kinds: list[str] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    node_names: list[str] = field(default_factory=list)
    links: dict[tuple[int, int], tuple[float, float, int]] = field(default_factory=dict)

    def vertex(self, name: str, kind: str, node: int = NO_NODE) -> int:
        """Add one and return its place."""
        self.names.append(name)
        self.kinds.append(kind)
        self.nodes.append(node)
        return len(self.names) - 1

    def join(self, first: int, second: int, bandwidth: float, latency: float, cables: int = 1) -> None:
        """Add a link each way, or more cables to the link there is.

        Args:
            first: one vertex.
            second: the other.
            bandwidth: bytes per second of one cable, one way.
            latency: seconds.
            cables: parallel ones, >= 1.
        """
        for ends in ((first, second), (second, first)):
            rate, wait, number = self.links.get(ends, (0.0, latency, 0))
            self.links[ends] = (rate + bandwidth * cables, max(wait, latency), number + cables)

    def build(self) -> Network:
        """The finished network, checked."""
        ends = np.array([*self.links], np.int64).reshape(-1, 2)
        rates = [*zip(*self.links.values(), strict=True)] or [(), (), ()]
        return Network(
            names=tuple(self.names),
            kinds=tuple(self.kinds),
            nodes=np.array(self.nodes, np.int64),
            node_names=tuple(self.node_names),
            source=ends[:, 0],
            target=ends[:, 1],
            bandwidth=np.array(rates[0], np.float64),
            latency=np.array(rates[1], np.float64),
            cables=np.array(rates[2], np.int64),
        )


def _check_connected(network: Network) -> None:
    """Everything must reach everything, along the links' directions."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    size = network.num_vertices
    ones = np.ones(network.num_links, np.int8)
    graph = coo_matrix((ones, (network.source, network.target)), shape=(size, size))
    count, part = connected_components(graph, directed=True, connection="strong")
    if count == 1:
        return
    inside = part == part[network.devices[0]]
    first, second = (_some(network, np.flatnonzero(mask)) for mask in (inside, ~inside))
    raise InputError(
        f"the network falls into parts that cannot reach each other: {first}; and {second}",
        hint="add links between them, or a topology that joins all nodes",
    )


def _some(network: Network, vertices: Ints) -> str:
    """Nodes of these vertices, or the vertices where they belong to none; a few and how many more."""
    found = dict.fromkeys(
        network.node_names[network.nodes[each]] if network.nodes[each] != NO_NODE else network.names[each]
        for each in vertices
    )
    shown = [*found][:_SHOWN_NAMES]
    more = f" and {len(found) - len(shown)} more" if len(found) > len(shown) else ""
    return f"{', '.join(shown)}{more}"
