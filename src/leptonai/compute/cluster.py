"""The machines a run may use: nodes, their devices, and the links between them."""

from __future__ import annotations

import ipaddress
import math
from collections import Counter
from dataclasses import dataclass
from typing import Literal

from leptonai.core.errors import InputError

DeviceKind = Literal["cpu", "gpu", "tpu"]
EngineName = Literal["local"]
TopologyKind = Literal["star", "ring", "mesh"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One or several equal devices of a node.

    Args:
        kind: ``cpu``, ``gpu`` or ``tpu``.
        count: how many of them, >= 1 (for a CPU: sockets).
        cores: cores of each, >= 1; only for a CPU; None: not known.
        memory_bytes: memory of each, > 0; None: not known.
        peak_flops: peak FLOP/s, > 0, *of one core* for a CPU and *of one device* otherwise; None: not known.
    """

    kind: DeviceKind
    count: int = 1
    cores: int | None = None
    memory_bytes: int | None = None
    peak_flops: float | None = None

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One machine."""

    name: str
    address: str = "127.0.0.1"
    devices: tuple[Device, ...] = ()

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
class Cluster:
    """The machines of one run and how many workers to start on them.

    Args:
        name: for people.
        nodes: at least one; names differ.
        links: between nodes by name; at most one for a pair.
        topology: the named topology the links came from, if any.
        engine: what starts the workers.
        num_workers: worker processes over all nodes, >= 1.
        threads_per_worker: compute threads of each, >= 1; None: cores divided by workers.
        hang_seconds: silence after which a worker counts as hung, > 0; None: the engine's own limit.

    Raises:
        InputError: a value lies outside its range, a name is used twice, or a link leads nowhere.

    >>> Cluster(name="laptop", nodes=(Node(name="a", devices=(Device(kind="cpu", cores=4),)),)).num_cores
    4
    """

    name: str
    nodes: tuple[Node, ...]
    links: tuple[Link, ...] = ()
    topology: TopologyKind | None = None
    engine: EngineName = "local"
    num_workers: int = 1
    threads_per_worker: int | None = None
    hang_seconds: float | None = None

    def __post_init__(self) -> None:
        if not self.nodes:
            raise InputError("Cluster: expected at least one node")
        if self.num_workers < 1:
            raise InputError(f"Cluster: expected num_workers >= 1, found {self.num_workers}")
        if self.threads_per_worker is not None and self.threads_per_worker < 1:
            raise InputError(f"Cluster: expected threads_per_worker >= 1, found {self.threads_per_worker}")
        if self.hang_seconds is not None and not (self.hang_seconds > 0 and math.isfinite(self.hang_seconds)):
            raise InputError(f"Cluster: expected hang_seconds > 0, found {self.hang_seconds}")
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
