from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.compute.topology.contention import Pattern, contend, halving_doubling, push_pull
from leptonai.compute.topology.graph import Builder, Network
from leptonai.compute.topology.routing import Transfers, route
from leptonai.core.errors import InputError
from tests.compute.topology.nets import RATE, WAIT, line, net, plain

SIZE = 1e9


def devices(network: Network) -> list[int]:
    return [int(each) for each in network.devices]


def load_of(network: Network, link: str, link_bytes: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    names = [network.link_name(each) for each in range(network.num_links)]
    return float(link_bytes[names.index(link)])


def test_a_ring_on_a_ring_loads_each_link_of_one_direction_equally() -> None:
    network = plain("ring", 4)
    found = contend(network, [devices(network)], "ring", SIZE)
    # 2 (p - 1) steps of bytes / p: 1.5 times the message over each link onwards, nothing backwards.
    assert sorted(found.link_bytes.tolist()) == pytest.approx([0.0] * 4 + [1.5 * SIZE] * 4)
    assert found.seconds == pytest.approx(1.5 * SIZE / RATE + 6 * WAIT, rel=1e-6)


def test_a_ring_over_a_star_of_nodes_shares_the_hubs_links() -> None:
    network = plain("star", 4)  # hub 0; the ring goes 0 1 2 3 0, so 1 to 2 and 2 to 3 cross the hub
    found = contend(network, [devices(network)], "ring", SIZE)
    assert found.link_bytes.tolist() == pytest.approx([1.5 * SIZE] * 6)
    assert found.seconds == pytest.approx(1.5 * SIZE / RATE + 6 * 2 * WAIT, rel=1e-6)


def test_equal_paths_share_and_wider_next_links_carry_more() -> None:
    builder = Builder()
    for place in range(4):
        builder.node_names.append(f"n{place}")
        builder.vertex(f"n{place}", "device", place)
    for middle, rate in ((1, 1e9), (2, 3e9)):
        builder.join(0, middle, rate, WAIT)
        builder.join(middle, 3, rate, WAIT)
    network = builder.build()
    found = contend(network, [[0, 3]], "point_to_point", 4e9)
    assert load_of(network, "n0 -> n1", found.link_bytes) == pytest.approx(1e9)
    assert load_of(network, "n2 -> n3", found.link_bytes) == pytest.approx(3e9)
    assert found.bandwidth_seconds == pytest.approx(1.0)


def test_halving_doubling_by_hand() -> None:
    network = net("switch", 4)
    found = contend(network, [devices(network)], "halving_doubling", SIZE)
    # Two exchanges of half the message and two of a quarter: 1.5 times the message out of each device.
    assert found.bandwidth_seconds == pytest.approx(1.5 * SIZE / RATE)
    assert found.seconds == pytest.approx(1.5 * SIZE / RATE + 4 * 2 * WAIT, rel=1e-6)
    with pytest.raises(InputError, match="a power of two of devices, found 3"):
        halving_doubling([0, 1, 2], SIZE)


def test_all_to_all_meets_in_the_middle_of_a_line() -> None:
    network = line(RATE, RATE, RATE)
    found = contend(network, [devices(network)], "all_to_all", SIZE)
    # Over the middle go 2 x 2 messages of a quarter each.
    assert load_of(network, "n1 -> n2", found.link_bytes) == pytest.approx(SIZE)
    assert network.link_name(found.bottleneck) in ("n1 -> n2", "n2 -> n1")
    assert found.seconds == pytest.approx(SIZE / RATE + 3 * WAIT, rel=1e-6)


def test_a_parameter_server_is_the_bottleneck_and_more_servers_widen_it() -> None:
    network = net("switch", 5)
    one = contend(network, [devices(network)], "push_pull", SIZE)
    assert one.bandwidth_seconds == pytest.approx(2 * 4 * SIZE / RATE)  # four pushes in, four pulls out
    assert "node-0" in network.link_name(one.bottleneck)
    steps = push_pull(devices(network), SIZE, num_servers=2)
    assert [step.transfers.num_bytes.sum() for step in steps] == [3 * SIZE, 3 * SIZE]
    with pytest.raises(InputError, match="expected servers and workers"):
        push_pull([1], SIZE)


def test_groups_at_the_same_time_share_links() -> None:
    network = net("switch", 2, devices=2)
    alone = contend(network, [[devices(network)[0], devices(network)[2]]], "ring", SIZE)
    both = contend(network, [devices(network)[0::2], devices(network)[1::2]], "ring", SIZE)
    assert both.bandwidth_seconds == pytest.approx(2 * alone.bandwidth_seconds)


def test_a_group_that_is_done_leaves_its_links_to_the_others() -> None:
    network = net("switch", 6)
    big, small = devices(network)[:4], devices(network)[4:]
    alone = contend(network, [big], "ring", SIZE)
    both = contend(network, [big, small], "ring", SIZE)  # the small one sends larger pieces, but fewer
    assert both.seconds >= alone.seconds
    assert both.link_bytes.sum() == pytest.approx(
        alone.link_bytes.sum() + contend(network, [small], "ring", SIZE).link_bytes.sum()
    )


@given(
    seed=st.integers(0, 50), pattern=st.sampled_from(["ring", "all_to_all", "push_pull", "point_to_point"])
)
def test_bytes_are_conserved_at_every_vertex(seed: int, pattern: Pattern) -> None:
    network = net("rail_optimised", 3, devices=2, radix=8)
    order = np.random.default_rng(seed).permutation(network.devices)[:4].tolist()
    found = contend(network, [order], pattern, SIZE).link_bytes
    leaving = np.bincount(network.source, weights=found, minlength=network.num_vertices)
    entering = np.bincount(network.target, weights=found, minlength=network.num_vertices)
    switches = [each for each, kind in enumerate(network.kinds) if kind != "device"]
    assert leaving[switches] == pytest.approx(entering[switches])
    assert leaving.sum() > 0


@given(factor=st.floats(1.0, 8.0))
def test_more_bandwidth_is_never_slower(factor: float) -> None:
    slow, fast = line(1e9, 2e9), line(factor * 1e9, 2e9)
    for pattern in ("ring", "all_to_all"):
        before, after = (contend(each, [devices(each)], pattern, SIZE).seconds for each in (slow, fast))
        assert after <= before * (1 + 1e-9)


def test_wrong_input_is_told() -> None:
    network = net("switch", 3)
    with pytest.raises(InputError, match="unknown pattern 'rnig'"):
        contend(network, [[0, 1]], "rnig", SIZE)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="expected bytes >= 0, found -1"):
        contend(network, [devices(network)], "ring", -1)
    with pytest.raises(InputError, match="groups of different devices"):
        contend(network, [[devices(network)[0]] * 2], "ring", SIZE)
    with pytest.raises(InputError, match="expected bytes >= 0"):
        route(network, Transfers(source=np.array([0]), target=np.array([1]), num_bytes=np.array([-1.0])))


def test_nothing_to_send_takes_no_time() -> None:
    network = net("switch", 2)
    assert contend(network, [devices(network)[:1]], "ring", SIZE).seconds == 0.0
    assert contend(network, [devices(network)], "ring", 0.0).seconds == 0.0
