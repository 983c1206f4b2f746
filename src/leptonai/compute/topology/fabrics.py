"""Switches between nodes: fat trees, rails and dragonflies, as many switches as the nodes need and no more."""

from __future__ import annotations

import math
from dataclasses import dataclass

from leptonai.compute.cluster import Fabric
from leptonai.compute.topology.graph import SWITCH, Builder
from leptonai.core.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """What switches join.

    Args:
        cards: for each node the vertices of its network cards, one for each rail.
        cables: parallel cables of each such vertex, >= 1.
    """

    cards: list[list[int]]
    cables: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """How many switches a tree takes.

    Args:
        nodes_per_leaf: nodes below one leaf (with rails: below each of the leaves of one group).
        num_leaves: of one rail.
        uplinks: cables up from a leaf; 0: one leaf joins all.
        levels: of switches, 1 to 3.
        leaves_per_pod: leaves that share their second-level switches; all of them with two levels.
    """

    nodes_per_leaf: int
    num_leaves: int
    uplinks: int
    levels: int
    leaves_per_pod: int

    @property
    def num_pods(self) -> int:
        """Groups of leaves."""
        return math.ceil(self.num_leaves / self.leaves_per_pod)


def plan_tree(num_nodes: int, fabric: Fabric, *, cables: int, rails: int = 1) -> Tree:
    """The smallest tree for so many nodes.

    A leaf of radix k has u = k / (1 + oversubscription) cables up, rounded down, and k - u down; three levels are the
    k-ary fat tree (Leiserson 1985; Al-Fares, Loukissas and Vahdat, SIGCOMM 2008) without the switches it can spare.

    Raises:
        InputError: the switches have too few ports for the nodes, even at three levels.

    >>> plan_tree(16, Fabric(kind="fat_tree", bandwidth_bytes_per_second=1.0, radix=4), cables=1).levels
    3
    """
    radix = fabric.radix
    if num_nodes * cables <= radix and rails == 1:
        return Tree(nodes_per_leaf=num_nodes, num_leaves=1, uplinks=0, levels=1, leaves_per_pod=1)
    up = max(1, int(radix / (1 + fabric.oversubscription)))
    nodes_per_leaf = (radix - up) // cables
    if nodes_per_leaf < 1:
        raise InputError(
            f"{fabric.kind}: a leaf of {radix} ports cannot take the {cables} cables of one node",
            hint="give more ports by radix, or fewer network cards by nics",
        )
    leaves = math.ceil(num_nodes / nodes_per_leaf)
    if leaves * rails <= radix:
        return Tree(
            nodes_per_leaf=nodes_per_leaf, num_leaves=leaves, uplinks=up, levels=2, leaves_per_pod=leaves
        )
    half = radix // 2
    # Rails need all leaves of a group in one pod, so that a card reaches every other rail's without the core.
    per_pod = half // rails
    pods = math.ceil(leaves / per_pod) if per_pod else radix + 1
    if pods > radix:
        most = radix * per_pod * nodes_per_leaf
        raise InputError(
            f"{fabric.kind}: switches of {radix} ports join at most {most} such nodes in three levels, not {num_nodes}",
            hint="give more ports by radix",
        )
    return Tree(
        nodes_per_leaf=nodes_per_leaf, num_leaves=leaves, uplinks=up, levels=3, leaves_per_pod=per_pod
    )


def join_fabric(builder: Builder, ports: Ports, fabric: Fabric) -> None:
    """Add the switches and cables of a fabric to nodes with their cards.

    Raises:
        InputError: the switches have too few ports.
    """
    if fabric.kind == "dragonfly":
        _dragonfly(builder, ports, fabric)
    elif fabric.kind in ("fat_tree", "rail_optimised"):
        _tree(builder, ports, fabric)
    else:
        switch = builder.vertex("switch", SWITCH)  # one ideal switch: its ports are not counted
        for card in (each for cards in ports.cards for each in cards):
            builder.join(
                card, switch, fabric.bandwidth_bytes_per_second, fabric.latency_seconds, ports.cables
            )


def _tree(builder: Builder, ports: Ports, fabric: Fabric) -> None:
    rails = len(ports.cards[0])
    tree = plan_tree(len(ports.cards), fabric, cables=ports.cables, rails=rails)
    rate, wait = fabric.bandwidth_bytes_per_second, fabric.latency_seconds
    leaves = []
    for leaf in range(tree.num_leaves):
        row = [
            builder.vertex(f"rail{rail}-leaf{leaf}" if rails > 1 else f"leaf{leaf}", SWITCH)
            for rail in range(rails)
        ]
        leaves.append(row)
        for cards in ports.cards[leaf * tree.nodes_per_leaf : (leaf + 1) * tree.nodes_per_leaf]:
            for card, switch in zip(cards, row, strict=True):
                builder.join(card, switch, rate, wait, ports.cables)
    if tree.levels == 1:
        return
    if tree.levels == 2:
        below = [switch for row in leaves for switch in row]
        _spread(builder, below, tree.uplinks, "spine", fabric)
        return
    aggregates = []
    for pod in range(tree.num_pods):
        rows = leaves[pod * tree.leaves_per_pod : (pod + 1) * tree.leaves_per_pod]
        made = [builder.vertex(f"pod{pod}-spine{place}", SWITCH) for place in range(tree.uplinks)]
        for switch in (each for row in rows for each in row):
            for above in made:
                builder.join(switch, above, rate, wait)
        aggregates.append(made)
    for place in range(tree.uplinks):
        _spread(builder, [made[place] for made in aggregates], fabric.radix // 2, f"core{place}-", fabric)


def _spread(builder: Builder, below: list[int], uplinks: int, name: str, fabric: Fabric) -> None:
    """Join switches to as few switches above as have the ports, each pair by equally many cables."""
    if uplinks * len(below) <= fabric.radix:
        count = 1
    else:
        count = next(
            each
            for each in range(1, uplinks + 1)
            if uplinks % each == 0 and each * fabric.radix >= len(below) * uplinks
        )
    for place in range(count):
        above = builder.vertex(f"{name}{place}", SWITCH)
        for switch in below:
            builder.join(
                switch, above, fabric.bandwidth_bytes_per_second, fabric.latency_seconds, uplinks // count
            )


_FEWEST_GROUPS = 3  # with fewer it is no dragonfly but one or two meshes


@dataclass(frozen=True, slots=True, kw_only=True)
class Dragonfly:
    """How many routers a dragonfly takes.

    Args:
        cards_per_router: p, >= 1.
        routers: of one group, a.
        num_groups: g.
        cables: between each pair of groups, >= 1; 0 with one group.
    """

    cards_per_router: int
    routers: int
    num_groups: int
    cables: int


def plan_dragonfly(num_cards: int, radix: int) -> Dragonfly:
    """A balanced dragonfly: a router has h cards and h cables to other groups, and a = 2h of them are a group.

    Of the heights h that the ports allow, the largest that leaves at least three groups: fewest routers.

    Source: Kim, Dally, Scott and Abts, Technology-driven, highly-scalable dragonfly topology, ISCA 2008, section 3.

    Raises:
        InputError: routers of so many ports cannot join the cards.

    >>> plan_dragonfly(72, 7)
    Dragonfly(cards_per_router=2, routers=4, num_groups=9, cables=1)
    """
    found = None
    for height in range(1, (radix + 1) // 4 + 1):  # h cards, 2h - 1 in the group, h to other groups
        routers = 2 * height
        groups = math.ceil(num_cards / (height * routers))
        if groups > routers * height + 1 or (found is not None and groups < _FEWEST_GROUPS):
            continue
        between = routers * height // (groups - 1) if groups > 1 else 0
        found = Dragonfly(cards_per_router=height, routers=routers, num_groups=groups, cables=between)
    if found is None:
        raise InputError(
            f"dragonfly: routers of {radix} ports cannot join {num_cards} network cards",
            hint="give more ports by radix",
        )
    return found


def _dragonfly(builder: Builder, ports: Ports, fabric: Fabric) -> None:
    shape = plan_dragonfly(sum(map(len, ports.cards)), fabric.radix)
    rate, wait = fabric.bandwidth_bytes_per_second, fabric.latency_seconds
    groups = []
    for group in range(shape.num_groups):
        routers = [builder.vertex(f"group{group}-router{place}", SWITCH) for place in range(shape.routers)]
        for first in range(shape.routers):
            for second in range(first):
                builder.join(routers[first], routers[second], rate, wait)
        groups.append(routers)
    # First cards of all nodes in a row, then second ones: cards of equal place are near each other, as rails are.
    for index, card in enumerate(each for row in zip(*ports.cards, strict=True) for each in row):
        router = index // shape.cards_per_router
        builder.join(card, groups[router // shape.routers][router % shape.routers], rate, wait)
    used = [0] * shape.num_groups
    for first in range(shape.num_groups):
        for second in range(first):
            ends = []
            for group in (first, second):  # a group's cables go out of its routers in turn
                ends.append([(used[group] + each) % shape.routers for each in range(shape.cables)])
                used[group] += shape.cables
            for left, right in zip(*ends, strict=True):
                builder.join(groups[first][left], groups[second][right], rate, wait)
