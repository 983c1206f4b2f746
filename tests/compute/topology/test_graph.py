from __future__ import annotations

import math

import pytest

from leptonai.compute.topology.graph import Builder
from leptonai.core.errors import InputError
from tests.compute.topology.nets import line, net


def two(rate: float = 1e9, wait: float = 0.0, *, joined: bool = True) -> Builder:
    builder = Builder()
    for place, name in enumerate(("left", "right")):
        builder.node_names.append(name)
        builder.vertex(name, "device", place)
    if joined:
        builder.join(0, 1, rate, wait)
    return builder


def test_a_cable_is_a_link_each_way_and_cables_add_up() -> None:
    builder = two()
    builder.join(0, 1, 2e9, 1e-6, cables=3)
    network = builder.build()
    assert (network.source.tolist(), network.target.tolist()) == ([0, 1], [1, 0])
    assert (network.bandwidth.tolist(), network.cables.tolist()) == ([7e9, 7e9], [4, 4])
    assert network.latency.tolist() == [1e-6, 1e-6]


@pytest.mark.parametrize(
    ("rate", "wait", "said"),
    [
        (-1.0, 0.0, "link left -> right: expected bandwidth > 0, found -1"),
        (0.0, 0.0, "expected bandwidth > 0, found 0"),
        (math.nan, 0.0, "link left -> right: expected bandwidth > 0, found none"),
        (math.inf, 0.0, "expected bandwidth > 0, found inf"),
        (1e9, -1e-6, "link left -> right: expected latency >= 0, found -1e-06"),
    ],
)
def test_a_missing_or_negative_rate_is_told_with_its_place(rate: float, wait: float, said: str) -> None:
    with pytest.raises(InputError) as caught:
        two(rate, wait).build()
    assert said in caught.value.message
    assert caught.value.hint


def test_both_parts_of_a_disconnected_network_are_told() -> None:
    with pytest.raises(InputError, match="cannot reach each other: left; and right"):
        two(joined=False).build()


def test_a_link_one_way_alone_does_not_connect() -> None:
    builder = two()
    del builder.links[1, 0]
    with pytest.raises(InputError, match="cannot reach each other"):
        builder.build()


def test_devices_are_found_by_their_name_or_their_nodes() -> None:
    network = net("switch", 2, devices=2)
    assert network.place("node-1/gpu1") == network.devices[3]
    assert network.place("node-1") == network.devices[2]
    with pytest.raises(InputError) as caught:
        network.place("node-1/gpu7")
    assert "node-1/gpu1" in str(caught.value)


def test_names_are_used_once() -> None:
    builder = two()
    builder.vertex("left", "switch")
    builder.join(0, 2, 1e9, 0.0)
    with pytest.raises(InputError, match="two vertices are named 'left'"):
        builder.build()


def test_a_network_has_devices() -> None:
    assert len(line(1e9).devices) == 2
    builder = Builder()
    builder.vertex("lonely", "switch")
    with pytest.raises(InputError, match="at least one device"):
        builder.build()
