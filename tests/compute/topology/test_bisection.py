from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from leptonai.compute.cluster import FabricKind
from leptonai.compute.topology.bisection import bisection, cut, formula
from tests.compute.topology.nets import RATE, fabric, line, net, plain

GENERATED: list[tuple[FabricKind, int, dict[str, Any], float]] = [
    ("switch", 7, {}, 3), ("switch", 6, {"nics": 2}, 6), ("torus", 8, {"dims": (4, 2)}, 4),
    ("torus", 8, {"dims": (2, 2, 2)}, 4), ("torus", 4, {"dims": (4, 1)}, 2), ("fat_tree", 8, {"radix": 4}, 4),
    ("fat_tree", 10, {"radix": 8}, 5), ("fat_tree", 8, {"radix": 6, "oversubscription": 2}, 2),
    ("rail_optimised", 8, {"radix": 8}, 8), ("islands", 8, {"island": 2}, 4), ("islands", 6, {}, 3),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "num_nodes", "more", "wanted"), GENERATED)
def test_a_formula_is_the_least_of_all_cuts(
    kind: FabricKind, num_nodes: int, more: dict[str, Any], wanted: float
) -> None:
    network = net(kind, num_nodes, devices=2, **more)
    known = formula(network, kind, fabric(kind, **more))
    searched = bisection(network)
    assert searched.exact
    assert "all cuts" in searched.how
    if known is not None:
        assert known.exact
        assert known.bytes_per_second == pytest.approx(wanted * RATE)
    assert searched.bytes_per_second == pytest.approx(wanted * RATE, rel=1e-5)


def test_most_generated_shapes_have_a_formula() -> None:
    known = [
        kind
        for kind, count, more, _ in GENERATED
        if formula(net(kind, count, devices=2, **more), kind, fabric(kind, **more))
    ]
    assert len(known) >= len(GENERATED) - 1


@pytest.mark.parametrize(("kind", "wanted"), [("star", 3), ("ring", 2), ("mesh", 12)])
def test_shapes_without_switches(kind: Any, wanted: int) -> None:
    network = plain(kind, 7, devices=2)
    assert bisection(network, kind=kind).bytes_per_second == pytest.approx(wanted * RATE)
    assert bisection(network).bytes_per_second == pytest.approx(wanted * RATE, rel=1e-5)


def test_a_large_network_without_a_formula_gets_a_bound() -> None:
    network = plain("ring", 24)
    bound = bisection(network)
    assert not bound.exact
    assert "upper bound" in bound.how
    assert bound.bytes_per_second == pytest.approx(2 * RATE, rel=1e-4)  # what halves in order find


def test_the_bound_is_never_below_the_truth() -> None:
    for dims in ((6, 4), (4, 4), (12, 2)):
        count = dims[0] * dims[1]
        network = net("torus", count, dims=dims)
        truth = bisection(network, kind="torus", fabric=fabric("torus", dims=dims))
        assert truth.exact
        assert bisection(network).bytes_per_second >= truth.bytes_per_second * (1 - 1e-4)


def test_one_node_is_halved_by_its_devices() -> None:
    assert bisection(net("switch", 1, devices=5)).bytes_per_second == pytest.approx(2 * 400e9, rel=1e-5)
    assert bisection(net("switch", 1)).bytes_per_second == 0.0


def test_a_cut_is_the_flow_through_its_narrowest_place() -> None:
    network = line(9e9, 3e9, 5e9)
    assert cut(network, np.array([0, 1]), np.array([2, 3])) == pytest.approx(3e9, rel=1e-5)
    assert cut(network, np.array([0]), np.array([1, 2, 3])) == pytest.approx(9e9, rel=1e-5)
