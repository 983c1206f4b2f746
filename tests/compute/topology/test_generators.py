from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.compute.cluster import FABRIC_KINDS, FabricKind
from leptonai.compute.topology.fabrics import plan_dragonfly, plan_tree
from leptonai.compute.topology.generators import Nodes, torus_dims
from leptonai.compute.topology.graph import Network
from leptonai.compute.topology.paths import all_paths
from leptonai.core.errors import InputError
from tests.compute.topology.nets import WAIT, fabric, net, plain


def cables(network: Network) -> int:
    """Between nodes and switches, between switches, or between nodes; not those that join devices of a node."""
    count = 0
    for link in range(network.num_links):
        ends = int(network.source[link]), int(network.target[link])
        inside = network.nodes[ends[0]] == network.nodes[ends[1]] >= 0
        island = any(network.names[end].startswith("island") for end in ends)
        count += 0 if inside or island else int(network.cables[link])
    return count // 2


def diameter(network: Network) -> int:
    """Cables on the longest of the fastest paths; each takes the same time, and links inside nodes none."""
    return round(float(all_paths(network, prefer="fastest").latency.max()) / WAIT)


@pytest.mark.parametrize(
    ("network", "switches", "num_cables", "longest"),
    [
        (plain("star", 5), 0, 4, 2),
        (plain("ring", 6), 0, 6, 3),
        (plain("ring", 2), 0, 1, 1),
        (plain("mesh", 5), 0, 10, 1),
        (net("torus", 16, dims=(4, 4)), 0, 32, 4),
        (net("torus", 27, dims=(3, 3, 3)), 0, 81, 3),
        (net("torus", 8), 0, 12, 3),  # a cube of side two has one cable to each neighbour
        (net("switch", 6), 1, 6, 2),
        # The 4-ary fat tree of Al-Fares et al.: 16 hosts, 20 switches, 48 cables.
        (net("fat_tree", 16, radix=4), 20, 48, 6),
        # Two levels: leaves of 4 down and 4 up; 16 hosts take 4 leaves and 2 spines.
        (net("fat_tree", 16, radix=8), 6, 32, 4),
        # Leaves of 4 down and 2 up: 4 leaves with 8 uplinks, which take 2 spines of 6 ports.
        (net("fat_tree", 16, radix=6, oversubscription=2), 6, 24, 4),
        # Four rails of one leaf each, with 4 up: 16 cables down, 16 up to 2 spines of 8 ports.
        (net("rail_optimised", 4, devices=4, radix=8), 6, 16 + 16, 2),
        # Heights of one: groups of two routers, each with one node; three groups, a cable between each two.
        (net("dragonfly", 6, radix=3), 6, 6 + 3 + 3, 5),
        (net("islands", 8, devices=2, island=2), 1, 8, 2),
    ],
)  # fmt: skip
def test_a_shape_has_its_switches_cables_and_diameter(
    network: Network, switches: int, num_cables: int, longest: int
) -> None:
    assert (network.kinds.count("switch"), cables(network)) == (switches, num_cables)
    assert diameter(network) == longest


def test_no_switch_has_more_cables_than_ports() -> None:
    cases: list[tuple[FabricKind, int, int, dict[str, Any]]] = [
        ("fat_tree", 16, 4, {}), ("fat_tree", 50, 8, {"nics": 2}), ("fat_tree", 40, 8, {"oversubscription": 3}),
        ("rail_optimised", 20, 16, {}), ("rail_optimised", 100, 16, {}), ("dragonfly", 72, 7, {}),
        ("dragonfly", 60, 16, {"nics": 2}),
    ]  # fmt: skip
    for kind, num_nodes, radix, more in cases:
        network = net(kind, num_nodes, devices=2, radix=radix, **more)
        ports = np.bincount(network.source, weights=network.cables)
        for switch in network.of_kind("switch"):
            assert ports[switch] <= radix, (kind, num_nodes, network.names[switch])


def test_rails_join_devices_of_equal_place_through_one_switch() -> None:
    network = net("rail_optimised", 4, devices=4, radix=8)
    latency = all_paths(network, prefer="fastest").latency
    assert round(latency[0, 4] / WAIT) == 2  # gpu0 of two nodes: up to the rail's leaf and down
    assert round(latency[0, 1] / WAIT) == 0  # within the node


def test_an_island_is_one_inner_network() -> None:
    network = net("islands", 4, devices=2, island=2)
    paths = all_paths(network)
    assert paths.bandwidth[0, 3] == 400e9  # the second node of the same island
    assert paths.bandwidth[0, 4] == 50e9  # another island


def test_the_smallest_tree_is_taken() -> None:
    assert plan_tree(64, fabric("fat_tree", radix=64), cables=1).levels == 1
    assert plan_tree(65, fabric("fat_tree", radix=64), cables=1).levels == 2
    assert plan_tree(2048, fabric("fat_tree", radix=64), cables=1).levels == 2
    assert plan_tree(2049, fabric("fat_tree", radix=64), cables=1).levels == 3


def test_a_shape_that_cannot_be_built_is_told() -> None:
    with pytest.raises(InputError, match="join at most 16 such nodes in three levels, not 17"):
        net("fat_tree", 17, radix=4)
    with pytest.raises(InputError, match="routers of 3 ports cannot join 7"):
        plan_dragonfly(7, 3)
    with pytest.raises(InputError, match="cannot take the 8 cables"):
        net("fat_tree", 9, radix=8, nics=8)
    with pytest.raises(InputError, match="lengths with product 8"):
        net("torus", 8, dims=(3, 3))
    with pytest.raises(InputError, match="a divisor of the 5 nodes, found 2"):
        net("islands", 5, island=2)
    with pytest.raises(InputError, match="expected a rate among the 2 devices"):
        Nodes(num_nodes=2, devices=2)


@given(count=st.integers(1, 500))
def test_lengths_of_a_torus_have_the_product(count: int) -> None:
    dims = torus_dims(count)
    assert math.prod(dims) == count
    assert list(dims) == sorted(dims, reverse=True)


@given(kind=st.sampled_from(FABRIC_KINDS), num_nodes=st.integers(1, 24), devices=st.integers(1, 3))
def test_every_shape_joins_any_number_of_nodes(kind: FabricKind, num_nodes: int, devices: int) -> None:
    network = net(kind, num_nodes, devices=devices, radix=16)
    assert len(network.devices) == num_nodes * devices
    assert network.num_nodes == num_nodes
