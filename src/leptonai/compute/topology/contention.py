"""What collectives do to a network: bytes on every link, the link that decides, and the seconds it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from leptonai.compute.topology.graph import Floats, Network
from leptonai.compute.topology.routing import Transfers, route
from leptonai.core.errors import InputError

Pattern = Literal["ring", "halving_doubling", "all_to_all", "push_pull", "point_to_point"]
Group = Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """Messages that travel together, a number of times one after the other."""

    transfers: Transfers
    times: int = 1


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Contention:
    """What one or several collectives at once do.

    Args:
        link_bytes: of every link, over the whole collective.
        bottleneck: the link that is busy longest.
        seconds: until all are done; steps follow each other, messages of a step share links.
        bandwidth_seconds: the part of it that more bandwidth would shorten.
    """

    link_bytes: Floats
    bottleneck: int
    seconds: float
    bandwidth_seconds: float


def ring(group: Group, num_bytes: float) -> list[Step]:
    """All-reduce in a ring: 2 (p - 1) times everybody sends bytes / p to the next (Patarasuk and Yuan 2009)."""
    size = len(group)
    if size < 2:
        return []
    following = [*group[1:], group[0]]
    return [Step(transfers=_equal(group, following, num_bytes / size), times=2 * (size - 1))]


def halving_doubling(group: Group, num_bytes: float) -> list[Step]:
    """All-reduce by recursive halving, then doubling (Thakur, Rabenseifner and Gropp 2005); powers of two only.

    Raises:
        InputError: the group is no power of two.
    """
    size = len(group)
    if size & (size - 1):
        raise InputError(f"halving-doubling: expected a power of two of devices, found {size}")
    steps = []
    for level in range(size.bit_length() - 1):
        partners = [group[place ^ (1 << level)] for place in range(size)]
        # The first exchange halves the message; the way back repeats each exchange.
        steps.append(Step(transfers=_equal(group, partners, num_bytes / 2 ** (level + 1)), times=2))
    return steps


def all_to_all(group: Group, num_bytes: float) -> list[Step]:
    """Everybody sends an equal share of its bytes to everybody, its own share staying."""
    size = len(group)
    if size < 2:
        return []
    pairs = [(first, second) for first in group for second in group if first != second]
    source, target = zip(*pairs, strict=True)
    return [Step(transfers=_equal(source, target, num_bytes / size))]


def push_pull(group: Group, num_bytes: float, *, num_servers: int = 1) -> list[Step]:
    """Workers push gradients to parameter servers and pull parameters; the first devices of the group serve.

    Raises:
        InputError: there are no servers, or no workers.
    """
    if not 1 <= num_servers < len(group):
        raise InputError(
            f"push-pull: expected servers and workers in a group of {len(group)}, found {num_servers} servers"
        )
    servers, workers = group[:num_servers], group[num_servers:]
    pairs = [(worker, server) for worker in workers for server in servers]
    source, target = zip(*pairs, strict=True)
    share = num_bytes / num_servers
    return [Step(transfers=_equal(source, target, share)), Step(transfers=_equal(target, source, share))]


def point_to_point(group: Group, num_bytes: float) -> list[Step]:
    """Each device but the last sends all bytes to the next, as pipeline stages do."""
    return [Step(transfers=_equal(group[:-1], group[1:], num_bytes))] if len(group) > 1 else []


PATTERNS: dict[Pattern, Callable[[Group, float], list[Step]]] = {
    "ring": ring,
    "halving_doubling": halving_doubling,
    "all_to_all": all_to_all,
    "push_pull": push_pull,
    "point_to_point": point_to_point,
}


def contend(network: Network, groups: Sequence[Group], pattern: Pattern, num_bytes: float) -> Contention:
    """Let several groups run a collective at the same time.

    Args:
        network: where.
        groups: devices (vertices of the network) of each; groups may differ in size.
        pattern: what they do; ``push_pull`` with one server each.
        num_bytes: of one device's message, >= 0.

    Raises:
        InputError: an unknown pattern, or a group that the pattern cannot serve.
    """
    if pattern not in PATTERNS:
        raise InputError(f"unknown pattern {pattern!r}", hint=f"one of: {', '.join(PATTERNS)}")
    if not (num_bytes >= 0 and math.isfinite(num_bytes)):
        raise InputError(f"{pattern}: expected bytes >= 0, found {num_bytes}")
    devices = set(network.devices.tolist())
    for group in groups:
        if not set(group) <= devices or len(set(group)) != len(group):
            raise InputError(f"{pattern}: expected groups of different devices, found {list(group)[:8]}")
    return play(network, [PATTERNS[pattern](group, num_bytes) for group in groups])


def play(network: Network, schedules: Sequence[Sequence[Step]]) -> Contention:
    """Run the steps of several schedules side by side, the first of each together, then the second.

    Of steps that repeat unequally often the longest decides; those that are done leave the links to the others.
    """
    link_bytes = np.zeros(network.num_links)
    seconds = bandwidth_seconds = 0.0
    for place in range(max(map(len, schedules), default=0)):
        steps = [schedule[place] for schedule in schedules if place < len(schedule)]
        done = 0
        for times in sorted({step.times for step in steps}):
            load = route(network, Transfers.together([s.transfers for s in steps if s.times >= times]))
            busy = float((load.link_bytes / network.bandwidth).max(initial=0.0))
            seconds += (times - done) * (busy + load.latency_seconds)
            bandwidth_seconds += (times - done) * busy
            link_bytes += (times - done) * load.link_bytes
            done = times
    bottleneck = int(np.argmax(link_bytes / network.bandwidth)) if network.num_links else -1
    return Contention(
        link_bytes=link_bytes, bottleneck=bottleneck, seconds=seconds, bandwidth_seconds=bandwidth_seconds
    )


def _equal(source: Sequence[int], target: Sequence[int], num_bytes: float) -> Transfers:
    """Messages of the same size."""
    return Transfers(
        source=np.array(source, np.int64),
        target=np.array(target, np.int64),
        num_bytes=np.full(len(source), num_bytes, np.float64),
    )
