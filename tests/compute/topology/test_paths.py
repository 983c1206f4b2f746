from __future__ import annotations

import math
import time

import numpy as np
import pytest

from leptonai.compute.topology.graph import Builder
from leptonai.compute.topology.paths import all_paths, best_path
from leptonai.core.errors import InputError
from tests.compute.topology.nets import line, net, plain


def test_a_path_is_as_wide_as_its_narrowest_link_and_as_slow_as_all() -> None:
    network = line(9e9, 3e9, 5e9)
    path = best_path(network, 0, 3)
    assert path.vertices == (0, 1, 2, 3)
    assert path.bandwidth_bytes_per_second == 3e9
    assert path.latency_seconds == pytest.approx(3e-6)


def diamond() -> Builder:
    """From 0 to 3: over 1 fast but narrow, over 2 wide but slow."""
    builder = Builder()
    for place in range(4):
        builder.node_names.append(f"n{place}")
        builder.vertex(f"n{place}", "device", place)
    builder.join(0, 1, 1e9, 1e-6)
    builder.join(1, 3, 1e9, 1e-6)
    builder.join(0, 2, 5e9, 7e-6)
    builder.join(2, 3, 4e9, 7e-6)
    return builder


def test_the_widest_and_the_fastest_path_may_differ() -> None:
    network = diamond().build()
    widest, fastest = best_path(network, 0, 3), best_path(network, 0, 3, prefer="fastest")
    assert (widest.vertices, widest.bandwidth_bytes_per_second) == ((0, 2, 3), 4e9)
    assert fastest.vertices == (0, 1, 3)
    assert fastest.latency_seconds == pytest.approx(2e-6)


def test_of_equally_wide_paths_the_fastest_and_of_those_the_shortest_is_best() -> None:
    builder = diamond()
    builder.join(0, 3, 4e9, 14e-6)  # as wide and as slow as over 2, but one link
    assert best_path(builder.build(), 0, 3).vertices == (0, 3)


def test_all_paths_at_once_are_those_found_one_by_one() -> None:
    for network in (
        diamond().build(),
        net("rail_optimised", 3, devices=2, radix=8),
        plain("ring", 5, devices=2),
    ):
        for prefer in ("widest", "fastest"):
            every = all_paths(network, prefer=prefer)
            for row, first in enumerate(network.devices):
                for column, second in enumerate(network.devices):
                    one = best_path(network, int(first), int(second), prefer=prefer)
                    assert every.latency[row, column] == pytest.approx(one.latency_seconds, abs=1e-10)
                    if prefer == "widest":
                        assert every.bandwidth[row, column] == one.bandwidth_bytes_per_second


def test_no_path_crosses_a_third_node_where_switches_join_nodes() -> None:
    network = net("dragonfly", 12, devices=2, radix=8, nics=2)
    for first, second in ((0, 5), (3, 20), (7, 12)):
        ends = int(network.devices[first]), int(network.devices[second])
        for prefer in ("widest", "fastest"):
            crossed = {int(network.nodes[each]) for each in best_path(network, *ends, prefer=prefer).vertices}
            assert crossed <= {-1, int(network.nodes[ends[0]]), int(network.nodes[ends[1]])}


def test_the_worst_pair_is_the_narrowest_then_the_farthest() -> None:
    paths = all_paths(line(9e9, 3e9, 5e9))
    assert paths.worst() == (0, 3)


def test_a_device_reaches_itself_at_once() -> None:
    path = best_path(line(1e9), 0, 0)
    assert (path.links, path.latency_seconds, path.bandwidth_bytes_per_second) == ((), 0.0, math.inf)
    with pytest.raises(InputError, match="unknown preference 'cheapest'"):
        best_path(line(1e9), 0, 1, prefer="cheapest")  # type: ignore[arg-type]


def test_a_thousand_devices_take_seconds() -> None:
    network = net("rail_optimised", 128, devices=8)
    start = time.perf_counter()
    paths = all_paths(network)
    assert paths.bandwidth.shape == (1024, 1024)
    assert np.isfinite(paths.latency).all()
    assert time.perf_counter() - start < 20  # about half a second on an idle core
