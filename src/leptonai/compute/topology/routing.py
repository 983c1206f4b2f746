"""Traffic over a network: equal-cost paths share what is sent, each link adds up what crosses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix

from leptonai.compute.topology.graph import Floats, Ints, Network
from leptonai.compute.topology.paths import HOP_SECONDS, distances_to, seconds_of, weights
from leptonai.core.errors import InputError

_CHUNK_ENTRIES = 4_000_000  # of one array of destinations x links: 32 MB


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Transfers:
    """Messages that travel at the same time.

    Args:
        source: M devices.
        target: M devices.
        num_bytes: of each message, >= 0.
    """

    source: Ints
    target: Ints
    num_bytes: Floats

    @classmethod
    def together(cls, parts: Sequence[Transfers]) -> Transfers:
        """All messages of these."""
        return cls(
            source=np.concatenate([part.source for part in parts]),
            target=np.concatenate([part.target for part in parts]),
            num_bytes=np.concatenate([part.num_bytes for part in parts]),
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Load:
    """What messages do to the links.

    Args:
        link_bytes: of every link.
        latency_seconds: of the longest fastest path that a message takes.
    """

    link_bytes: Floats
    latency_seconds: float


def route(network: Network, transfers: Transfers) -> Load:
    """Send messages along all fastest paths; at every vertex they divide over the next links by bandwidth.

    That is equal-cost multi-path routing (RFC 2992) without the collisions of its hashing: no better split of the
    same paths exists at a vertex, so a real network is at most as good.

    Raises:
        InputError: a message has fewer than no bytes.
    """
    if (transfers.num_bytes < 0).any():
        raise InputError("transfers: expected bytes >= 0")
    moving = (transfers.source != transfers.target) & (transfers.num_bytes > 0)
    source, target = transfers.source[moving], transfers.target[moving]
    num_bytes = transfers.num_bytes[moving]
    link_bytes = np.zeros(network.num_links)
    if not len(source):
        return Load(link_bytes=link_bytes, latency_seconds=0.0)
    targets, row = np.unique(target, return_inverse=True)
    longest = 0.0
    chunk = max(1, _CHUNK_ENTRIES // network.num_links)
    for start in range(0, len(targets), chunk):
        inside = (row >= start) & (row < start + chunk)
        rows, columns = row[inside] - start, source[inside]
        shape = (min(chunk, len(targets) - start), network.num_vertices)
        demand = np.asarray(coo_matrix((num_bytes[inside], (rows, columns)), shape=shape).todense())
        distance = distances_to(network, targets[start : start + chunk])
        longest = max(longest, float(seconds_of(distance[rows, columns]).max()))
        link_bytes += _flow(network, demand, distance)
    return Load(link_bytes=link_bytes, latency_seconds=longest)


def _flow(network: Network, waiting: Floats, distance: Floats) -> Floats:
    """Bytes of each link when what waits at vertices (T x V) moves to its destination (a row each)."""
    step = distance[:, network.source] - weights(network) - distance[:, network.target]
    shares = np.where(np.abs(step) < HOP_SECONDS / 4, network.bandwidth, 0.0)  # T x L
    leaving, entering = _incidence(network, network.source), _incidence(network, network.target)
    total = np.asarray(shares @ leaving)
    shares /= np.where(total > 0, total, 1.0)[:, network.source]
    carried = np.zeros(network.num_links)
    for _ in range(network.num_vertices):  # no fastest path visits a vertex twice
        moved = waiting[:, network.source] * shares
        if not moved.any():
            break
        carried += moved.sum(axis=0)
        waiting = np.asarray(moved @ entering)
    return carried


def _incidence(network: Network, ends: Ints) -> csr_matrix:
    """L x V: which vertex each link has at one of its ends."""
    ones, links = np.ones(network.num_links), np.arange(network.num_links)
    return coo_matrix((ones, (links, ends)), shape=(network.num_links, network.num_vertices)).tocsr()
