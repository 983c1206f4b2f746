"""Bisection bandwidth: what at least passes between any two halves of the nodes, one way."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from leptonai.compute.cluster import Fabric, ShapeKind
from leptonai.compute.topology.fabrics import plan_tree
from leptonai.compute.topology.generators import torus_dims
from leptonai.compute.topology.graph import Floats, Ints, Network

MOST_ENUMERATED = 10
"""Nodes up to which every pair of halves is tried: 126 cuts for ten."""
_CAPACITY_UNITS = 2**26  # of the widest link; flows of up to 31 such links fit the solver's 32-bit integers
_INTEGER_LIMIT = 2**31 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Bisection:
    """Bandwidth between halves.

    Args:
        bytes_per_second: one way.
        exact: whether it is the least over all halves; False: the least found, so the true one may be lower.
        how: the formula or the method, in words.
    """

    bytes_per_second: float
    exact: bool
    how: str


def bisection(network: Network, *, kind: ShapeKind | None = None, fabric: Fabric | None = None) -> Bisection:
    """The bisection bandwidth of the nodes, or of the devices where there is one node; nodes stay whole.

    Args:
        network: where.
        kind: the shape it was generated in, if it was; its formula is used where it is exact.
        fabric: the figures it was generated from, for shapes with any.
    """
    terminals = _terminals(network)
    if len(terminals) == 1:
        return Bisection(bytes_per_second=0.0, exact=True, how="one device alone")
    if kind is not None and network.num_nodes > 1:
        known = formula(network, kind, fabric)
        if known is not None:
            return known
    if len(terminals) <= MOST_ENUMERATED:
        least = min(cut(network, *halves) for halves in _all_halves(terminals))
        return Bisection(bytes_per_second=least, exact=True, how="least of all cuts into halves")
    least = min(cut(network, *halves) for halves in _likely_halves(network, terminals))
    return Bisection(
        bytes_per_second=least, exact=False, how="upper bound: least cut found by spectral and ordered halves"
    )


def formula(network: Network, kind: ShapeKind, fabric: Fabric | None) -> Bisection | None:
    """The bisection of a generated shape of equal nodes; None where no exact formula is known.

    Sources: Dally and Towles, Principles and Practices of Interconnection Networks (2004), sections 1.3, 3.2 and 5.1
    (torus), 6.1 (trees, non-blocking for oversubscription 1); the others count links.
    """
    count = network.num_nodes
    half = count // 2
    if fabric is None:
        outside = _outside(network)
        rate = float(outside.max(initial=0.0))
        if kind == "star":
            return _exact(half * rate, "star: the smaller half's links to the hub")
        if kind == "ring":
            return _exact((2 if count > 2 else 1) * rate, "ring: two links")
        return (
            _exact(half * (count - half) * rate, "mesh: a link for each pair across")
            if kind == "mesh"
            else None
        )
    rate = fabric.bandwidth_bytes_per_second
    if kind == "torus":
        return _torus(fabric.dims or torus_dims(count), rate)
    rails = len(network.devices) // count if kind == "rail_optimised" else 1
    node_rate = rate * (rails if kind == "rail_optimised" else fabric.nics)
    if kind == "switch" or (kind == "islands" and fabric.island == 1):
        return _exact(half * node_rate, "switch: the cards of half the nodes")
    if kind in ("fat_tree", "rail_optimised"):
        return _tree(count, fabric, rails, node_rate)
    if kind == "islands" and (count // fabric.island) % 2 == 0:
        return _exact(half * node_rate, "islands: the cards of half the nodes, islands whole")
    return None


def cut(network: Network, first: Ints, second: Ints) -> float:
    """Bytes per second that can flow from some vertices to others at once: their least cut, the weaker direction."""
    return min(_flow(network, first, second), _flow(network, second, first))


def _exact(rate: float, how: str) -> Bisection:
    return Bisection(bytes_per_second=rate, exact=True, how=how)


def _torus(dims: tuple[int, ...], rate: float) -> Bisection | None:
    count, longest = int(np.prod(dims)), max(dims)
    if longest % 2:
        return None
    ways = 2 if longest > 2 else 1  # two nodes in a row have one cable, not one each way
    return _exact(
        ways * count // longest * rate, f"torus: {ways * count // longest} cables across its longest side"
    )


def _tree(count: int, fabric: Fabric, rails: int, node_rate: float) -> Bisection | None:
    """Whole leaves on each side: each sends what its nodes or its uplinks can, whichever is less."""
    tree = plan_tree(count, fabric, cables=1 if rails > 1 else fabric.nics, rails=rails)
    if tree.levels == 1:
        return _exact(count // 2 * node_rate, "tree: one switch, the cards of half the nodes")
    up = tree.uplinks * rails * fabric.bandwidth_bytes_per_second
    if tree.num_leaves == 1 or up >= tree.nodes_per_leaf * node_rate:
        return _exact(count // 2 * node_rate, "tree: not oversubscribed, the cards of half the nodes")
    even = count % tree.nodes_per_leaf == 0 and tree.num_leaves % 2 == 0
    pods_even = tree.levels == 2 or (tree.num_leaves % tree.leaves_per_pod == 0 and tree.num_pods % 2 == 0)
    return (
        _exact(tree.num_leaves // 2 * up, "tree: the cables up from half the leaves")
        if even and pods_even
        else None
    )


def _outside(network: Network) -> Floats:
    """Bandwidth of links between nodes."""
    rates: Floats = network.bandwidth[network.nodes[network.source] != network.nodes[network.target]]
    return rates


def _terminals(network: Network) -> list[Ints]:
    """Devices of each node; each device by itself where there is one node."""
    devices = network.devices
    if network.num_nodes == 1:
        return [np.array([each]) for each in devices]
    return [devices[network.nodes[devices] == node] for node in range(network.num_nodes)]


def _all_halves(terminals: list[Ints]) -> Iterator[tuple[Ints, Ints]]:
    count = len(terminals)
    for chosen in itertools.combinations(range(count), count // 2):
        if count % 2 or 0 in chosen:  # of two equal halves either may be called the first
            yield _sides(terminals, set(chosen))


def _likely_halves(network: Network, terminals: list[Ints]) -> Iterator[tuple[Ints, Ints]]:
    """Halves in the order of the nodes and along the smoothest vibrations of the network (Fiedler 1973)."""
    count = len(terminals)
    yield _sides(terminals, set(range(count // 2)))
    yield _sides(terminals, set(range(0, count - 1, 2)))
    for wave in _waves(network):
        heights = np.array([wave[each].mean() for each in terminals])
        order = np.argsort(heights, kind="stable")
        yield _sides(terminals, set(order[: count // 2].tolist()))


def _sides(terminals: list[Ints], chosen: set[int]) -> tuple[Ints, Ints]:
    first = np.concatenate([each for place, each in enumerate(terminals) if place in chosen])
    return first, np.concatenate([each for place, each in enumerate(terminals) if place not in chosen])


def _waves(network: Network) -> Floats:
    """Eigenvectors of the three smallest eigenvalues of the Laplacian, apart from the constant one."""
    from scipy.sparse import coo_matrix, diags
    from scipy.sparse.linalg import eigsh

    size = network.num_vertices
    scaled = network.bandwidth / network.bandwidth.max()
    graph = coo_matrix((scaled, (network.source, network.target)), shape=(size, size)).tocsr()
    graph = (graph + graph.T) / 2
    laplacian = diags(np.asarray(graph.sum(axis=1)).ravel()) - graph
    if size < 8:  # too small for the iterative solver
        waves: Floats = np.linalg.eigh(laplacian.toarray())[1].T[1:4]
        return waves
    # A shift below zero keeps the factored matrix regular; a fixed start keeps the result the same each time.
    _, found = eigsh(laplacian.tocsc(), k=4, sigma=-1e-3, which="LM", v0=np.linspace(1.0, 2.0, size))
    modes: Floats = found.T[1:]
    return modes


def _flow(network: Network, first: Ints, second: Ints) -> float:
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import maximum_flow

    size = network.num_vertices
    leaving = sum(float(network.bandwidth[np.isin(network.source, side)].sum()) for side in (first, second))
    # Capacities are whole numbers of a unit fine enough for the narrowest links, coarse enough for the sum.
    unit = max(network.bandwidth.max() / _CAPACITY_UNITS, leaving / (_INTEGER_LIMIT / 2))
    whole = np.maximum(np.round(network.bandwidth / unit), 1)
    start, end = size, size + 1
    rows = np.concatenate([network.source, np.full(len(first), start), second])
    columns = np.concatenate([network.target, first, np.full(len(second), end)])
    open_wide = np.full(len(first) + len(second), _INTEGER_LIMIT // 4)
    values = np.concatenate([whole, open_wide]).astype(np.int32)
    graph = coo_matrix((values, (rows, columns)), shape=(size + 2, size + 2)).tocsr()
    return float(maximum_flow(graph, start, end).flow_value * unit)
