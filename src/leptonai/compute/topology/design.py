"""Topologies compared for one job: what each costs, how wide it is, how fast the job steps on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from leptonai.compute.cluster import Fabric, FabricKind
from leptonai.compute.prediction.machine import Accelerator, Machine
from leptonai.compute.topology.bisection import Bisection, bisection
from leptonai.compute.topology.generators import DIRECT_KINDS, Nodes, generate
from leptonai.compute.topology.of_cluster import machine_from
from leptonai.compute.topology.prices import Bill, bill, switch_ports
from leptonai.core.errors import InputError

StepSeconds = Callable[[Machine], float]
"""The step time of the job on a machine; an ``InputError`` says why it cannot run there."""
Progress = Callable[[int, int], None]
"""Called with the topologies compared so far and all there are."""
SWITCH_LATENCY_SECONDS = 0.6e-6
"""A hop: cable, port and switch. About 0.15 us is the switch (NVIDIA Quantum-2), the rest cable and forwarding."""
_CANDIDATES: tuple[tuple[str, FabricKind, float], ...] = (
    ("one switch", "switch", 1.0),
    ("rails", "rail_optimised", 1.0),
    ("fat tree", "fat_tree", 1.0),
    ("fat tree 2:1", "fat_tree", 2.0),
    ("fat tree 4:1", "fat_tree", 4.0),
    ("dragonfly", "dragonfly", 1.0),
    ("torus", "torus", 1.0),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """What does not change between topologies.

    Args:
        device: each device.
        num_nodes: >= 2.
        per_node: devices of a node, >= 1.
        in_node_bytes_per_second: of one device inside its node, one way, > 0.
        nic_bytes_per_second: of one network card, one way, > 0.
        nics: cards of a node, >= 1.
        server_price: of a node without network cards, US dollars, >= 0.
    """

    device: Accelerator
    num_nodes: int
    per_node: int
    in_node_bytes_per_second: float
    nic_bytes_per_second: float
    nics: int
    server_price: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """One topology.

    Args:
        name: for people.
        fabric: as a cluster file would say.
        parts: what it takes.
        price: of servers and network together.
        halves: its bisection.
        node_bytes_per_second: what one node sends while all do.
        step_seconds: of the job; None: not worked out.
        reason: why it is no choice; empty: it is one.
    """

    name: str
    fabric: Fabric
    parts: Bill
    price: float
    halves: Bisection
    node_bytes_per_second: float
    step_seconds: float | None
    reason: str = ""


def compare(
    site: Site,
    step_seconds: StepSeconds,
    *,
    budget: float | None = None,
    on_progress: Progress = lambda done, total: None,
) -> list[Design]:
    """All topologies that can join the nodes, the best choice first, those that are none last.

    Of two that step equally fast (to a thousandth) the cheaper is better.

    Args:
        site: nodes and cards.
        step_seconds: the job.
        budget: most that all may cost, US dollars; None: no bound.
        on_progress: called before the first topology and after every one.

    Raises:
        InputError: fewer than two nodes, or a figure outside its range.
    """
    if site.num_nodes < 2:
        raise InputError("design: expected at least two nodes to join", hint="ask for more --devices")
    known: dict[Machine, float] = {}
    made: list[Design] = []
    fabrics = list(_fabrics(site))
    on_progress(0, len(fabrics))
    for place, (name, fabric) in enumerate(fabrics, start=1):
        found = _design(site, name, fabric)
        if found is not None and not any(_same_network(found[0], each) for each in made):
            made.append(_judged(*found, step_seconds, budget, known))
        on_progress(place, len(fabrics))
    fastest = min((each.step_seconds for each in made if each.step_seconds is not None), default=1.0)

    def rank(design: Design) -> tuple[bool, float, float]:
        seconds = design.step_seconds or 0.0
        return bool(design.reason), round(seconds / fastest, 3), design.price

    return sorted(made, key=rank)


def _same_network(one: Design, other: Design) -> bool:
    """Small ones of several kinds are built of the same parts: at first sight a tree of one switch is that switch."""
    ours, theirs = (
        (each.parts, each.halves.bytes_per_second, each.node_bytes_per_second) for each in (one, other)
    )
    return ours == theirs


def _judged(
    design: Design,
    machine: Machine,
    step_seconds: StepSeconds,
    budget: float | None,
    known: dict[Machine, float],
) -> Design:
    """With its step time, out of those known where the machine is the same, or why it is no choice."""
    if budget is not None and design.price > budget:
        reason = f"costs {design.price:,.0f}, {design.price - budget:,.0f} above the budget"
        return replace(design, reason=reason)
    try:
        if machine not in known:
            known[machine] = step_seconds(machine)
        return replace(design, step_seconds=known[machine])
    except InputError as error:
        return replace(design, reason=error.message)


def _fabrics(site: Site) -> Iterator[tuple[str, Fabric]]:
    for name, kind, oversubscription in _CANDIDATES:
        rails = kind == "rail_optimised"
        if rails and site.nics != site.per_node:
            continue  # a rail is a card at every device
        yield name, Fabric(
            kind=kind, bandwidth_bytes_per_second=site.nic_bytes_per_second, latency_seconds=SWITCH_LATENCY_SECONDS,
            nics=1 if kind == "torus" else site.nics, radix=switch_ports(), oversubscription=oversubscription,
        )  # fmt: skip


def _design(site: Site, name: str, fabric: Fabric) -> tuple[Design, Machine] | None:
    if fabric.kind == "switch" and site.num_nodes * site.nics > fabric.radix:
        return None
    nodes = Nodes(num_nodes=site.num_nodes, devices=site.per_node, bandwidth=site.in_node_bytes_per_second)
    try:
        network = generate(fabric.kind, nodes, fabric)
    except InputError:
        return None  # too few ports for so many nodes
    parts = bill(network, fabric.kind, nics=0 if fabric.kind in DIRECT_KINDS else site.nics)
    machine = machine_from(network, site.device, in_node_bandwidth=site.in_node_bytes_per_second)
    design = Design(
        name=name, fabric=fabric, parts=parts, price=parts.price + site.server_price * site.num_nodes,
        halves=bisection(network, kind=fabric.kind, fabric=fabric),
        node_bytes_per_second=machine.between_nodes.bandwidth_bytes_per_second, step_seconds=None,
    )  # fmt: skip
    return design, machine
