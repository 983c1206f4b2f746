"""Best paths between devices: widest or fastest, for one pair or for all of them at once."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from leptonai.compute.topology.graph import NIC, SWITCH, Floats, Ints, Network
from leptonai.core.errors import InputError

Preference = Literal["widest", "fastest"]
HOP_SECONDS = 1e-12
"""Added to each link's latency, so that of equally fast paths the one of fewest links wins; far below any real one."""
LEAVING_SECONDS = 1.0
"""Added to a path's length where it leaves a node by a network card, so that it never crosses a third node, which
would cost another one; far above any real latency, and taken off again by :func:`seconds_of`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Path:
    """One way through the network.

    Args:
        vertices: from one end to the other.
        links: one fewer.
        bandwidth_bytes_per_second: of its narrowest link; infinite from a device to itself.
        latency_seconds: of all its links together.
    """

    vertices: tuple[int, ...]
    links: tuple[int, ...]
    bandwidth_bytes_per_second: float
    latency_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AllPaths:
    """Best paths between all D devices, in the order of ``Network.devices``.

    Args:
        bandwidth: D x D, of the narrowest link; infinite on the diagonal.
        latency: D x D, of the path, to within ``HOP_SECONDS`` a link.
    """

    bandwidth: Floats
    latency: Floats

    def worst(self) -> tuple[int, int]:
        """Places of the two devices with the narrowest path, of those the one with the longest latency."""
        least = self.bandwidth.min()
        found = np.where(self.bandwidth == least, self.latency, -1.0)
        first, second = np.unravel_index(int(np.argmax(found)), found.shape)
        return int(first), int(second)


def best_path(network: Network, first: int, second: int, *, prefer: Preference = "widest") -> Path:
    """The best path from one vertex to another.

    Args:
        network: where.
        first: a vertex, such as ``network.place("node-0/gpu1")``.
        second: another, or the same.
        prefer: ``widest``: most bandwidth, then least latency, then fewest links; ``fastest``: least latency, then
            fewest links, then most bandwidth of the last choice.

    Raises:
        InputError: ``prefer`` is no such word.
    """
    if prefer not in ("widest", "fastest"):
        raise InputError(f"path: unknown preference {prefer!r}", hint="one of: widest, fastest")
    if first == second:
        return Path(vertices=(first,), links=(), bandwidth_bytes_per_second=np.inf, latency_seconds=0.0)
    if prefer == "fastest":
        return _fastest(network, first, second, np.ones(network.num_links, np.bool_))
    levels = np.unique(network.bandwidth)[::-1]
    low, high = 0, len(levels) - 1  # the widest level at which the two still reach each other
    while low < high:
        middle = (low + high) // 2
        distance = _distances(network, np.array([first]), network.bandwidth >= levels[middle])
        low, high = (low, middle) if np.isfinite(distance[0, second]) else (middle + 1, high)
    return _fastest(network, first, second, network.bandwidth >= levels[low])


def all_paths(network: Network, *, prefer: Preference = "widest") -> AllPaths:
    """Bandwidth and latency of the best paths between all devices.

    Widest paths take one all-pairs search for each different bandwidth above the narrowest that anybody needs, so
    a network built of a few kinds of cables costs little more than fastest ones.

    Raises:
        InputError: ``prefer`` is no such word.
    """
    if prefer not in ("widest", "fastest"):
        raise InputError(f"path: unknown preference {prefer!r}", hint="one of: widest, fastest")
    devices = network.devices
    shape = (len(devices), len(devices))
    bandwidth, latency = np.zeros(shape), np.full(shape, np.inf)
    if prefer == "fastest":
        everything = np.ones(network.num_links, np.bool_)
        latency = _distances(network, devices, everything)[:, devices]
        for level in np.unique(network.bandwidth):  # the widest subnetwork in which the fastest path survives
            within = _distances(network, devices, network.bandwidth >= level)[:, devices]
            bandwidth[within <= latency + HOP_SECONDS / 4] = level
    else:
        for level in np.unique(network.bandwidth)[::-1]:
            missing = bandwidth == 0
            rows = missing.any(axis=1)
            if not rows.any():
                break
            within = _distances(network, devices[rows], network.bandwidth >= level)[:, devices]
            reached = np.zeros(shape, np.bool_)
            reached[rows] = np.isfinite(within)
            new = reached & missing
            bandwidth[new] = level
            latency[new] = within[new[rows]]
    np.fill_diagonal(bandwidth, np.inf)
    np.fill_diagonal(latency, 0.0)
    return AllPaths(bandwidth=bandwidth, latency=seconds_of(latency))


def distances_to(network: Network, targets: Ints) -> Floats:
    """Lengths, in the sense of :func:`weights`, of the fastest paths from every vertex to these: T x V."""
    return _distances(network, targets, np.ones(network.num_links, np.bool_), backwards=True)


def weights(network: Network) -> Floats:
    """What a link adds to a path's length: its latency, ``HOP_SECONDS``, and ``LEAVING_SECONDS`` out of a card."""
    kinds = np.array(network.kinds)
    leaves = (kinds[network.source] == NIC) & (kinds[network.target] == SWITCH)
    made: Floats = network.latency + HOP_SECONDS + LEAVING_SECONDS * leaves
    return made


def seconds_of(length: Floats) -> Floats:
    """Latency of paths of these lengths, to within ``HOP_SECONDS`` a link; infinite where there is none."""
    finite = np.where(np.isfinite(length), length, 0.0)
    return np.where(np.isfinite(length), np.mod(finite, LEAVING_SECONDS), length)


def _distances(
    network: Network, starts: Ints, usable: NDArray[np.bool_], *, backwards: bool = False
) -> Floats:
    from scipy.sparse.csgraph import dijkstra

    found: Floats = dijkstra(_matrix(network, usable, backwards=backwards), indices=starts)
    return found


def _matrix(network: Network, usable: NDArray[np.bool_], *, backwards: bool = False) -> object:
    from scipy.sparse import coo_matrix

    ends = (network.target, network.source) if backwards else (network.source, network.target)
    size = network.num_vertices
    places = (ends[0][usable], ends[1][usable])
    return coo_matrix((weights(network)[usable], places), shape=(size, size)).tocsr()


def _fastest(network: Network, first: int, second: int, usable: NDArray[np.bool_]) -> Path:
    from scipy.sparse.csgraph import dijkstra

    _, before = dijkstra(_matrix(network, usable), indices=first, return_predecessors=True)
    vertices = [second]
    while vertices[-1] != first:
        vertices.append(int(before[vertices[-1]]))
    vertices.reverse()
    known = {
        (int(a), int(b)): link for link, (a, b) in enumerate(zip(network.source, network.target, strict=True))
    }
    links = [known[pair] for pair in itertools.pairwise(vertices)]
    return Path(
        vertices=tuple(vertices),
        links=tuple(links),
        bandwidth_bytes_per_second=float(network.bandwidth[links].min()),
        latency_seconds=float(network.latency[links].sum()),
    )
