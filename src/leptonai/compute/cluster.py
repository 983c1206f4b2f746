"""The machines a run may use: nodes, their devices, and the links between them."""

from __future__ import annotations

import ipaddress
import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal, get_args

from leptonai.compute.measured import Measured
from leptonai.core.errors import InputError

DeviceKind = Literal["cpu", "gpu", "tpu"]
EngineName = Literal["local"]
TopologyKind = Literal["star", "ring", "mesh"]
FabricKind = Literal["switch", "fat_tree", "rail_optimised", "torus", "dragonfly", "islands"]
ShapeKind = Literal[TopologyKind, FabricKind]
FABRIC_KINDS: tuple[FabricKind, ...] = get_args(FabricKind)
MOST_DIMS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One or several equal devices of a node.

    Args:
        kind: ``cpu``, ``gpu`` or ``tpu``.
        count: how many of them, >= 1 (for a CPU: sockets).
        cores: cores of each, >= 1; only for a CPU; None: not known.
        memory_bytes: memory of each, > 0; None: not known.
        peak_flops: peak FLOP/s, > 0, *of one core* for a CPU and *of one device* otherwise; None: not known.
        memory_bandwidth_bytes_per_second: of each, > 0; None: not known.
        accelerator: its name in the hardware catalogue; None: it has none.
    """

    kind: DeviceKind
    count: int = 1
    cores: int | None = None
    memory_bytes: int | None = None
    peak_flops: float | None = None
    memory_bandwidth_bytes_per_second: float | None = None
    accelerator: str | None = None

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"Device: expected count >= 1, found {self.count}")
        if self.cores is not None and (self.kind != "cpu" or self.cores < 1):
            raise InputError(
                f"Device: expected cores >= 1 and only for a cpu, found {self.cores} for a {self.kind}"
            )
        if self.memory_bytes is not None and self.memory_bytes <= 0:
            raise InputError(f"Device: expected memory_bytes > 0, found {self.memory_bytes}")
        if self.peak_flops is not None and not (self.peak_flops > 0 and math.isfinite(self.peak_flops)):
            raise InputError(f"Device: expected peak_flops > 0, found {self.peak_flops}")
        rate = self.memory_bandwidth_bytes_per_second
        if rate is not None and not (rate > 0 and math.isfinite(rate)):
            raise InputError(f"Device: expected memory bandwidth > 0, found {rate}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One machine.

    Args:
        name: used once.
        address: IP address or host name.
        devices: what it computes with.
        interconnect_bytes_per_second: what one device sends to the others of the node, one way, > 0; None: not known.
        interconnect_latency_seconds: of the smallest message between two devices of the node, >= 0.
        price_per_hour: of the whole node, >= 0; None: not known.
    """

    name: str
    address: str = "127.0.0.1"
    devices: tuple[Device, ...] = ()
    interconnect_bytes_per_second: float | None = None
    interconnect_latency_seconds: float = 0.0
    price_per_hour: float | None = None

    def __post_init__(self) -> None:
        rate = self.interconnect_bytes_per_second
        if rate is not None and not (rate > 0 and math.isfinite(rate)):
            raise InputError(f"Node: expected interconnect > 0, found {rate}")
        if not (self.interconnect_latency_seconds >= 0 and math.isfinite(self.interconnect_latency_seconds)):
            raise InputError(
                f"Node: expected interconnect latency >= 0, found {self.interconnect_latency_seconds}"
            )
        if self.price_per_hour is not None and not (
            self.price_per_hour >= 0 and math.isfinite(self.price_per_hour)
        ):
            raise InputError(f"Node: expected a price >= 0, found {self.price_per_hour}")

    @property
    def is_local(self) -> bool:
        """Whether the address is this machine's loopback.

        >>> Node(name="laptop").is_local, Node(name="a", address="10.0.0.7").is_local
        (True, False)
        """
        if self.address == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.address).is_loopback
        except ValueError:
            return False

    @property
    def num_cores(self) -> int:
        """Cores of all its CPUs; a CPU whose cores are not known counts as none."""
        return sum(device.count * (device.cores or 0) for device in self.devices if device.kind == "cpu")

    def num_devices(self, kind: DeviceKind) -> int:
        """How many devices of that kind it has."""
        return sum(device.count for device in self.devices if device.kind == kind)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A connection between two nodes, the same both ways."""

    ends: tuple[str, str]
    bandwidth_bytes_per_second: float
    latency_seconds: float = 0.0

    def __post_init__(self) -> None:
        if self.ends[0] == self.ends[1]:
            raise InputError(f"Link: both ends are {self.ends[0]!r}", hint="a link joins two different nodes")
        rate = self.bandwidth_bytes_per_second
        if not (rate > 0 and math.isfinite(rate)):
            raise InputError(f"Link: expected bandwidth > 0, found {rate}")
        if not (self.latency_seconds >= 0 and math.isfinite(self.latency_seconds)):
            raise InputError(f"Link: expected latency >= 0, found {self.latency_seconds}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fabric:
    """Switches, or direct links, that join equal nodes in a generated shape.

    Args:
        kind: the shape.
        bandwidth_bytes_per_second: of each cable, one way, > 0.
        latency_seconds: of each cable with the port it ends at, one way, >= 0.
        nics: network cards of a node, each with one cable, >= 1; rails have one for each device, a torus none.
        radix: ports of a switch, >= 2.
        oversubscription: cables down from a leaf switch for each cable up, >= 1.
        dims: lengths of a torus along its two or three dimensions; empty: as near a cube as the nodes allow.
        island: nodes whose devices share one in-node network, >= 1; only for ``islands``.
    """

    kind: FabricKind
    bandwidth_bytes_per_second: float
    latency_seconds: float = 0.0
    nics: int = 1
    radix: int = 64
    oversubscription: float = 1.0
    dims: tuple[int, ...] = ()
    island: int = 1

    def __post_init__(self) -> None:
        if self.kind not in FABRIC_KINDS:
            raise InputError(f"Fabric: unknown kind {self.kind!r}", hint=f"one of: {', '.join(FABRIC_KINDS)}")
        rate = self.bandwidth_bytes_per_second
        if not (rate > 0 and math.isfinite(rate)):
            raise InputError(f"Fabric: expected bandwidth > 0, found {rate}")
        if not (self.latency_seconds >= 0 and math.isfinite(self.latency_seconds)):
            raise InputError(f"Fabric: expected latency >= 0, found {self.latency_seconds}")
        for name, least in (("nics", 1), ("radix", 2), ("oversubscription", 1), ("island", 1)):
            if not (getattr(self, name) >= least and math.isfinite(getattr(self, name))):
                raise InputError(f"Fabric: expected {name} >= {least}, found {getattr(self, name)}")
        if any(length < 1 for length in self.dims) or len(self.dims) > MOST_DIMS:
            raise InputError(f"Fabric: expected at most three dims, each >= 1, found {list(self.dims)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """The machines of one run and how many workers to start on them.

    Args:
        name: for people.
        nodes: at least one; names differ.
        links: between nodes by name; at most one for a pair.
        topology: the named shape the links came from, if any.
        fabric: what joins the nodes in place of ``links``, if they were generated.
        engine: what starts the workers.
        num_workers: worker processes over all nodes, >= 1.
        threads_per_worker: compute threads of each, >= 1; None: cores divided by workers.
        hang_seconds: silence after which a worker counts as hung, > 0; None: the engine's own limit.
        measured: what a probe found on this machine; None: nothing.

    Raises:
        InputError: a value lies outside its range, a name is used twice, or a link leads nowhere.

    >>> Cluster(name="laptop", nodes=(Node(name="a", devices=(Device(kind="cpu", cores=4),)),)).num_cores
    4
    """

    name: str
    nodes: tuple[Node, ...]
    links: tuple[Link, ...] = ()
    topology: ShapeKind | None = None
    fabric: Fabric | None = None
    engine: EngineName = "local"
    num_workers: int = 1
    threads_per_worker: int | None = None
    hang_seconds: float | None = None
    measured: Measured | None = None

    def __post_init__(self) -> None:
        if not self.nodes:
            raise InputError("Cluster: expected at least one node")
        if self.num_workers < 1:
            raise InputError(f"Cluster: expected num_workers >= 1, found {self.num_workers}")
        if self.threads_per_worker is not None and self.threads_per_worker < 1:
            raise InputError(f"Cluster: expected threads_per_worker >= 1, found {self.threads_per_worker}")
        if self.hang_seconds is not None and not (self.hang_seconds > 0 and math.isfinite(self.hang_seconds)):
            raise InputError(f"Cluster: expected hang_seconds > 0, found {self.hang_seconds}")
        if self.fabric is not None and self.links:
            raise InputError("Cluster: links and a fabric are both given", hint="keep one of them")
        _check_names(self)

    @property
    def num_cores(self) -> int:
        """Cores of all nodes together."""
        return sum(node.num_cores for node in self.nodes)

    def link_between(self, first: str, second: str) -> Link | None:
        """The direct link between two nodes, or None where there is none."""
        return next((link for link in self.links if set(link.ends) == {first, second}), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """One physical machine: every node with a loopback address is the same one.

    ``cores`` are the numbers of the cores that workers may use; empty: not known.
    """

    nodes: tuple[str, ...]
    cores: tuple[int, ...]
    is_local: bool


def hosts_of(cluster: Cluster, available_cores: tuple[int, ...]) -> tuple[Host, ...]:
    """The machines behind the nodes, this one first if it is among them.

    Args:
        cluster: the nodes.
        available_cores: the cores of this machine that this process may use; a local node that declares fewer
            gets the first of them.

    >>> nodes = (Node(name="a"), Node(name="b"))
    >>> hosts_of(Cluster(name="two in one", nodes=nodes), (0, 1))
    (Host(nodes=('a', 'b'), cores=(0, 1), is_local=True),)
    """
    local = [node for node in cluster.nodes if node.is_local]
    hosts = []
    if local:
        # A node without a declared CPU still has this machine's.
        num_cores = sum(node.num_cores or len(available_cores) for node in local)
        names = tuple(node.name for node in local)
        hosts.append(Host(nodes=names, cores=available_cores[:num_cores], is_local=True))
    for node in cluster.nodes:
        if not node.is_local:
            hosts.append(Host(nodes=(node.name,), cores=tuple(range(node.num_cores)), is_local=False))
    return tuple(hosts)


def _check_names(cluster: Cluster) -> None:
    names = Counter(node.name for node in cluster.nodes)
    for name, times in names.items():
        if times > 1:
            raise InputError(
                f"Cluster: {times} nodes are named {name!r}", hint="give every node its own name"
            )
    pairs = Counter(frozenset(link.ends) for link in cluster.links)
    for pair, times in pairs.items():
        if unknown := sorted(pair - names.keys()):
            raise InputError(f"Cluster: a link leads to {unknown[0]!r}, which is no node")
        if times > 1:
            raise InputError(f"Cluster: {times} links join {' and '.join(sorted(pair))}")
