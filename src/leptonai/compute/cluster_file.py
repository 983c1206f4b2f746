"""The cluster file: strict models that become one frozen :class:`Cluster`."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from leptonai.compute.cluster import (
    Cluster,
    Device,
    DeviceKind,
    EngineName,
    Fabric,
    Link,
    Node,
    ShapeKind,
    TopologyKind,
)
from leptonai.compute.cluster_parts import (
    MAX_NODES,
    check_accelerator,
    check_topology,
    fill_device,
    interconnect_of,
    node_names,
)
from leptonai.compute.measured_section import MeasuredSection
from leptonai.core.fields import ByteRate, ByteSize, Duration, FlopRate
from leptonai.core.files import FileModel, Problem, problem, read_yaml


class DeviceFile(FileModel):
    """One or several equal devices of a node."""

    kind: DeviceKind = Field(description="What it is.")
    count: int = Field(default=1, ge=1, description="How many of them; for a CPU, sockets.")
    cores: int | None = Field(
        default=None,
        ge=1,
        description="Cores of each; only for a CPU. Left out: the cores this machine offers.",
    )
    memory: ByteSize | None = Field(default=None, gt=0, description="Memory of each.")
    peak: FlopRate | None = Field(
        default=None, gt=0, description="Peak FLOP/s: of one core for a CPU, of one device otherwise."
    )
    memory_bandwidth: ByteRate | None = Field(
        default=None, gt=0, description="What each reads from and writes to its memory."
    )
    accelerator: Annotated[str, AfterValidator(check_accelerator)] | None = Field(
        default=None,
        description="A name of the hardware catalogue, such as `h100-sxm`; it fills in what is left out here.",
    )

    def to_device(self, *, available_cores: int) -> Device:
        """The frozen value; a CPU without ``cores`` gets ``available_cores``."""
        cores = self.cores or (available_cores if self.kind == "cpu" else None)
        device = Device(
            kind=self.kind, count=self.count, cores=cores, memory_bytes=self.memory, peak_flops=self.peak,
            memory_bandwidth_bytes_per_second=self.memory_bandwidth, accelerator=self.accelerator,
        )  # fmt: skip
        return fill_device(device)


def _check_address(address: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9.:_-]+", address):
        raise problem(f"{address!r} is not an address", hint="write an IP address or a host name")
    return address


class NodeFile(FileModel):
    """One machine."""

    name: str = Field(min_length=1, description="Its name, used once.")
    count: int = Field(
        default=1,
        ge=1,
        le=MAX_NODES,
        description="How many equal nodes this stands for; more than one are named `NAME-0`, `NAME-1` and so on.",
    )
    address: Annotated[str, AfterValidator(_check_address)] = Field(
        default="127.0.0.1",
        description="Its IP address or host name. The local engine starts workers on this machine alone.",
    )
    devices: tuple[DeviceFile, ...] = Field(
        default=(), description="What it computes with. Left out: one CPU with the cores this machine offers."
    )
    interconnect: ByteRate | None = Field(
        default=None,
        gt=0,
        description="What one device sends to the others of its node, one way. "
        "Left out: as the catalogue says of its accelerator.",
    )
    interconnect_latency: Duration = Field(
        default=0.0, description="Time of the smallest message between two devices of the node."
    )
    price: float | None = Field(
        default=None, ge=0, allow_inf_nan=False, description="Of the whole node, in US dollars an hour."
    )

    def to_nodes(self, *, available_cores: int) -> tuple[Node, ...]:
        """The frozen values; without devices each is one CPU with ``available_cores``."""
        devices = self.devices or (DeviceFile(kind="cpu"),)
        made = tuple(device.to_device(available_cores=available_cores) for device in devices)
        return tuple(
            Node(
                name=name,
                address=self.address,
                devices=made,
                interconnect_bytes_per_second=self.interconnect or interconnect_of(made),
                interconnect_latency_seconds=self.interconnect_latency,
                price_per_hour=self.price,
            )
            for name in node_names(self.name, self.count)
        )


class LinkFile(FileModel):
    """A connection between two nodes, the same both ways."""

    between: tuple[str, str] = Field(description="The names of the two nodes.")
    bandwidth: ByteRate = Field(gt=0, description="Bits or bytes per second, one way.")
    latency: Duration = Field(default=0.0, description="Time of the smallest message, one way.")


class TopologyFile(FileModel):
    """Equal links in a named shape, or a generated network of switches, instead of a list of links."""

    kind: ShapeKind = Field(
        description="`star`: the first node joined to every other; `ring`: each to the next and the last to "
        "the first; `mesh`: each to each; `switch`: all at one switch; `fat_tree`: leaf switches below spines; "
        "`rail_optimised`: the devices of equal place in their nodes at the same leaf, spines above; `torus`: each to "
        "its neighbours in two or three dimensions; `dragonfly`: fully joined groups of switches, each group "
        "joined to each; `islands`: groups of nodes share one in-node network, and a switch joins the groups."
    )
    bandwidth: ByteRate = Field(gt=0, description="Of every link, one way.")
    latency: Duration = Field(default=0.0, description="Of every link, one way.")
    nics: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Network cards of a node, where switches join nodes; rails have one for each.",
    )
    radix: int = Field(default=64, ge=2, le=1024, description="Ports of a switch.")
    oversubscription: float = Field(
        default=1.0,
        ge=1,
        allow_inf_nan=False,
        description="Cables down from a leaf switch for each cable up.",
    )
    dims: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        default=(),
        max_length=3,
        description="Lengths of a torus. Left out: three, as near a cube as the nodes allow.",
    )
    island: int = Field(default=1, ge=1, description="Nodes of one island.")

    def to_links(self, names: tuple[str, ...]) -> tuple[Link, ...]:
        """The links that a shape without switches has between nodes of these names; a fabric has none."""
        if self.kind not in ("star", "ring", "mesh"):
            return ()
        return tuple(
            Link(ends=ends, bandwidth_bytes_per_second=self.bandwidth, latency_seconds=self.latency)
            for ends in topology_pairs(self.kind, names)
        )

    def to_fabric(self) -> Fabric | None:
        """The frozen value of a generated network; None where plain links say all."""
        if self.kind == "star" or self.kind == "ring" or self.kind == "mesh":
            return None
        return Fabric(
            kind=self.kind, bandwidth_bytes_per_second=self.bandwidth, latency_seconds=self.latency, nics=self.nics,
            radix=self.radix, oversubscription=self.oversubscription, dims=self.dims, island=self.island,
        )  # fmt: skip


class WorkersFile(FileModel):
    """How many worker processes, and how each runs. A plain number is the count."""

    count: int = Field(ge=1, description="Worker processes over all nodes.")
    threads: int | None = Field(
        default=None, ge=1, description="Compute threads of each. Left out: cores divided by workers."
    )
    hang: Duration | None = Field(
        default=None,
        gt=0,
        description="Silence after which a worker counts as hung. Left out: the engine's limit.",
    )


def _count_alone(value: object) -> object:
    return {"count": value} if isinstance(value, int) else value


class ClusterFile(FileModel):
    """The whole file."""

    name: str = Field(default="cluster", min_length=1, description="A name for people.")
    engine: EngineName = Field(
        default="local", description="What starts the workers. `local`: processes on this machine."
    )
    nodes: tuple[NodeFile, ...] = Field(description="The machines, at least one.")
    workers: Annotated[WorkersFile, BeforeValidator(_count_alone)] = Field(
        default=WorkersFile(count=1), description="Worker processes: a number, or the keys below."
    )
    links: tuple[LinkFile, ...] = Field(default=(), description="Connections between nodes.")
    topology: TopologyFile | None = Field(
        default=None, description="Connections in a named shape; not together with `links`."
    )
    measured: MeasuredSection | None = Field(
        default=None, description="What `lepton cluster probe` found; it writes this itself."
    )

    @classmethod
    def cross_check(cls, raw: Mapping[str, Any]) -> Iterator[Problem]:
        """Names used twice, links that lead nowhere, cores of a GPU."""
        if raw.get("nodes") == ():
            yield Problem(at=("nodes",), message="nodes: expected at least one node")
        names: dict[str, int] = {}
        for index, node in enumerate(_mappings(raw.get("nodes"))):
            name = node.get("name")
            if isinstance(name, str) and name in names:
                message = f"node name {name!r} is used twice, first by nodes[{names[name]}]"
                yield Problem(
                    at=("nodes", index, "name"), message=message, hint="give every node its own name"
                )
            elif isinstance(name, str):
                names[name] = index
            yield from _check_devices(node, index)
        yield from _check_counted(raw)
        yield from check_topology(raw.get("topology"), len(_expanded(raw)))
        yield from _check_links(raw, _expanded(raw))
        if raw.get("links") and raw.get("topology"):
            yield Problem(
                at=("topology",), message="links and topology are both given", hint="keep one of them"
            )

    def to_cluster(self, *, available_cores: int) -> Cluster:
        """The frozen value.

        Args:
            available_cores: cores of this machine, for CPUs whose cores the file leaves out, >= 1.
        """
        return Cluster(
            name=self.name,
            nodes=self._nodes(available_cores),
            links=self._links(),
            topology=self.topology.kind if self.topology else None,
            fabric=self.topology.to_fabric() if self.topology else None,
            engine=self.engine,
            num_workers=self.workers.count,
            threads_per_worker=self.workers.threads,
            hang_seconds=self.workers.hang,
            measured=self.measured.to_measured() if self.measured else None,
        )

    def _nodes(self, available_cores: int) -> tuple[Node, ...]:
        made = (node.to_nodes(available_cores=available_cores) for node in self.nodes)
        return tuple(itertools.chain.from_iterable(made))

    def _links(self) -> tuple[Link, ...]:
        if self.topology:
            return self.topology.to_links(
                tuple(name for node in self.nodes for name in node_names(node.name, node.count))
            )
        return tuple(
            Link(
                ends=link.between,
                bandwidth_bytes_per_second=link.bandwidth,
                latency_seconds=link.latency,
            )
            for link in self.links
        )


def read_cluster(path: Path, *, available_cores: int) -> Cluster:
    """Read a cluster file.

    Args:
        path: the file.
        available_cores: cores of this machine, for CPUs whose cores the file leaves out, >= 1.

    Raises:
        InputError: with every problem in the file, its line and a hint.
    """
    return read_yaml(path, ClusterFile).to_cluster(available_cores=available_cores)


def topology_pairs(kind: TopologyKind, names: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Pairs of nodes that a named shape joins.

    >>> topology_pairs("star", ("hub", "a", "b"))
    (('hub', 'a'), ('hub', 'b'))
    >>> topology_pairs("ring", ("a", "b", "c"))
    (('a', 'b'), ('b', 'c'), ('c', 'a'))
    """
    if kind == "star":
        return tuple((names[0], name) for name in names[1:])
    # Two nodes in a ring have one link, not one each way.
    if kind == "mesh" or len(names) < 3:
        return tuple(itertools.combinations(names, 2))
    return tuple(zip(names, (*names[1:], names[0]), strict=True))


def _mappings(value: object) -> list[dict[str, Any]]:
    """Every item of a raw list, those that are no mappings as empty ones, so that positions stay right."""
    items = value if isinstance(value, tuple) else ()
    return [item if isinstance(item, dict) else {} for item in items]


def _expanded(raw: Mapping[str, Any]) -> list[str]:
    """Names of all nodes, as far as the file can be read."""
    names: list[str] = []
    for node in _mappings(raw.get("nodes")):
        name, count = node.get("name"), node.get("count", 1)
        if isinstance(name, str):
            names += node_names(name, count if type(count) is int and 0 < count <= MAX_NODES else 1)
    return names


def _check_counted(raw: Mapping[str, Any]) -> Iterator[Problem]:
    """Names that equal nodes get and another entry has as well; two entries of one name are told elsewhere."""
    owner: dict[str, int] = {}
    for index, node in enumerate(_mappings(raw.get("nodes"))):
        for name in _expanded({"nodes": (node,)}):
            first = owner.setdefault(name, index)
            if first != index and name != node.get("name"):
                message = f"node name {name!r} is used twice, first by nodes[{first}]"
                yield Problem(
                    at=("nodes", index, "name"), message=message, hint="give every node its own name"
                )
                break


def _check_devices(node: Mapping[str, Any], index: int) -> Iterator[Problem]:
    for number, device in enumerate(_mappings(node.get("devices"))):
        if device.get("kind") in ("gpu", "tpu") and device.get("cores") is not None:
            at = ("nodes", index, "devices", number, "cores")
            yield Problem(at=at, message=f"cores are only for a cpu, not for a {device['kind']}")


def _check_links(raw: Mapping[str, Any], names: list[str]) -> Iterator[Problem]:
    seen: set[frozenset[str]] = set()
    for index, link in enumerate(_mappings(raw.get("links"))):
        between = link.get("between")
        if not isinstance(between, tuple) or not all(isinstance(name, str) for name in between):
            continue
        at = ("links", index, "between")
        for name in between:
            if name not in names:
                near = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean {near[0]!r}?" if near else f"nodes: {', '.join(names) or 'none'}"
                yield Problem(at=at, message=f"link to the unknown node {name!r}", hint=hint)
        pair = frozenset(between)
        if len(between) == 2 and len(pair) == 1:
            yield Problem(
                at=at, message=f"link from {between[0]!r} to itself", hint="name two different nodes"
            )
        if pair in seen:
            yield Problem(at=at, message=f"a second link between {' and '.join(between)}", hint="keep one")
        seen.add(pair)
