"""Collectives against hand-worked sums and against algorithms played on arrays; groups against enumeration."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from leptonai.compute.prediction import collectives
from leptonai.compute.prediction.collectives import ALL_REDUCES, Traffic
from leptonai.compute.prediction.layouts import PLACEMENTS, Layout, Layouts
from leptonai.core.errors import InputError

OF_DEVICES = {
    **ALL_REDUCES,
    "reduce-scatter": collectives.ring_reduce_scatter,
    "all-gather": collectives.ring_all_gather,
    "broadcast": collectives.scatter_all_gather_broadcast,
    "all-to-all": collectives.all_to_all,
}
COUNTS = st.integers(1, 5000)
SIZES = st.floats(0, 1e12)
BANDWIDTHS = st.floats(1e6, 1e12)


# 4 devices, 8 bytes, 1 s latency, 2 bytes/s, 0.5 s to sum a byte; 6 of 8 bytes are three quarters.
@pytest.mark.parametrize(
    ("name", "seconds", "sent_bytes"),
    [
        ("ring", 2 * 3 + 2 * 6 / 2 + 6 * 0.5, 12),
        ("recursive doubling", 2 * (1 + 8 / 2 + 8 * 0.5), 16),
        ("halving doubling", 2 * 2 + 2 * 6 / 2 + 6 * 0.5, 12),
        ("binomial", 2 * 2 * (1 + 8 / 2) + 2 * 8 * 0.5, 16),
        ("double tree", 2 * 2 + 2 * 8 / 2 + 8 * 0.5, 16),
        ("reduce-scatter", 3 + 6 / 2 + 6 * 0.5, 6),
        ("all-gather", 3 + 6 / 2, 6),
        ("broadcast", (2 + 3) + 2 * 6 / 2, 12),
        ("all-to-all", 3 + 6 / 2, 6),
    ],
)
def test_four_devices_by_hand(name: str, seconds: float, sent_bytes: float) -> None:
    traffic = OF_DEVICES[name](4, 8.0)
    found = traffic.seconds(latency_seconds=1, bandwidth_bytes_per_second=2, reduce_seconds_per_byte=0.5)
    assert float(found) == seconds
    assert float(traffic.sent_bytes) == sent_bytes


# 3 devices: one folds into a partner first (1 message of 8) and gets the sum last (another); two are left.
@pytest.mark.parametrize(
    ("name", "messages", "path_bytes", "reduced_bytes"),
    [
        ("recursive doubling", 1 + 2, 8 + 16, 8 + 8),
        ("halving doubling", 2 + 2, 4 + 4 + 16, 4 + 8),
        ("binomial", 4, 32, 16),
        ("double tree", 4, 16, 8),
    ],
)
def test_three_devices_fold(name: str, messages: float, path_bytes: float, reduced_bytes: float) -> None:
    traffic = ALL_REDUCES[name](3, 8.0)
    found = (float(traffic.messages), float(traffic.path_bytes), float(traffic.reduced_bytes))
    assert found == (messages, path_bytes, reduced_bytes)


def test_one_message() -> None:
    link = {"latency_seconds": 1.0, "bandwidth_bytes_per_second": 2.0}
    assert float(collectives.point_to_point(8.0).seconds(**link)) == 5.0


def test_hierarchical_by_hand() -> None:
    # 2 nodes of 2 devices. In a node: 2 messages of 1 s and 8 bytes at 2/s; between: 2 of 3 s and 4 bytes at 1/s.
    found = collectives.hierarchical_all_reduce_seconds(
        2,
        2,
        8.0,
        in_node_latency_seconds=1,
        in_node_bandwidth_bytes_per_second=2,
        between_latency_seconds=3,
        between_bandwidth_bytes_per_second=1,
    )
    assert float(found) == (2 * 1 + 8 / 2) + (2 * 3 + 4 / 1)
    assert [float(each) for each in collectives.hierarchical_all_reduce_bytes(2, 2, 8.0)] == [8.0, 4.0]


def _ring_by_messages(values_PN: NDArray[np.float64]) -> tuple[NDArray[np.float64], int, NDArray[np.int64]]:
    """Ring all-reduce, message by message: result, rounds, elements each device sent."""
    count = len(values_PN)
    parts = [np.array_split(row, count) for row in values_PN.copy()]
    sent, rounds = np.zeros(count, np.int64), 0
    for phase, step in itertools.product((0, 1), range(count - 1)):
        moving = [(device, (device + phase - step) % count) for device in range(count)]
        copies = [parts[device][part].copy() for device, part in moving]
        for (device, part), copy in zip(moving, copies, strict=True):
            target = parts[(device + 1) % count]
            target[part] = target[part] + copy if phase == 0 else copy
            sent[device] += copy.size
        rounds += 1
    return np.stack([np.concatenate(each) for each in parts]), rounds, sent


def _doubling_by_messages(
    values_PN: NDArray[np.float64], *, halving: bool
) -> tuple[NDArray[np.float64], int, NDArray[np.int64]]:
    """Recursive doubling of everything, or Rabenseifner's halving and doubling."""
    count, size = values_PN.shape
    values, sent, rounds = values_PN.copy(), np.zeros(count, np.int64), 0
    low, high = np.zeros(count, np.int64), np.full(count, size)
    distances = [1 << bit for bit in range(count.bit_length() - 1)]
    for distance in distances:
        before = values.copy()
        for device in range(count):
            partner = device ^ distance
            if halving:
                middle = (low[device] + high[device]) // 2
                sent[device] += (high[device] - low[device]) // 2
                if device < partner:
                    high[device] = middle
                else:
                    low[device] = middle
            else:
                sent[device] += size
            mine = slice(low[device], high[device])
            values[device, mine] = before[device, mine] + before[partner, mine]
        rounds += 1
    for distance in reversed(distances) if halving else ():
        before, lows, highs = values.copy(), low.copy(), high.copy()
        for device in range(count):
            partner = device ^ distance
            theirs = slice(lows[partner], highs[partner])
            values[device, theirs] = before[partner, theirs]
            sent[device] += highs[device] - lows[device]
            low[device], high[device] = min(lows[device], lows[partner]), max(highs[device], highs[partner])
        rounds += 1
    return values, rounds, sent


@pytest.mark.parametrize("count", [2, 4, 8, 16])
@pytest.mark.parametrize("name", ["ring", "recursive doubling", "halving doubling"])
def test_counts_are_those_of_the_algorithm_played_out(name: str, count: int) -> None:
    values_PN = np.random.default_rng(3).integers(0, 100, (count, 16 * count)).astype(np.float64)
    if name == "ring":
        result, rounds, sent = _ring_by_messages(values_PN)
    else:
        result, rounds, sent = _doubling_by_messages(values_PN, halving=name == "halving doubling")
    assert (result == values_PN.sum(axis=0)).all()
    traffic = ALL_REDUCES[name](count, float(values_PN.shape[1]))
    assert float(traffic.messages) == rounds
    assert set(sent) == {float(traffic.sent_bytes)}


@pytest.mark.parametrize("name", OF_DEVICES)
def test_one_device_sends_nothing(name: str) -> None:
    traffic = OF_DEVICES[name](1, 1e9)
    assert float(traffic.sent_bytes) == 0
    found = traffic.seconds(latency_seconds=1, bandwidth_bytes_per_second=1, reduce_seconds_per_byte=1)
    assert float(found) == 0


@pytest.mark.parametrize("name", OF_DEVICES)
@given(count=COUNTS, size=SIZES)
def test_infinite_bandwidth_leaves_latency(name: str, count: int, size: float) -> None:
    traffic = OF_DEVICES[name](count, size)
    found = traffic.seconds(latency_seconds=2.0, bandwidth_bytes_per_second=math.inf)
    assert float(found) == 2.0 * float(traffic.messages)


@pytest.mark.parametrize("name", OF_DEVICES)
@given(count=COUNTS, size=SIZES, more=SIZES, bandwidth=BANDWIDTHS, faster=st.floats(1, 100))
def test_monotony(name: str, count: int, size: float, more: float, bandwidth: float, faster: float) -> None:
    def seconds(traffic: Traffic, rate: float) -> float:
        return float(
            traffic.seconds(
                latency_seconds=1e-5, bandwidth_bytes_per_second=rate, reduce_seconds_per_byte=1e-12
            )
        )

    small, large = OF_DEVICES[name](count, size), OF_DEVICES[name](count, size + more)
    assert seconds(small, bandwidth * faster) <= seconds(small, bandwidth)
    assert seconds(small, bandwidth) <= seconds(large, bandwidth)
    assert float(small.sent_bytes) <= float(large.sent_bytes)


@given(count=COUNTS, size=SIZES, bandwidth=BANDWIDTHS)
def test_best_is_the_least_and_says_which(count: int, size: float, bandwidth: float) -> None:
    seconds, which = collectives.best_all_reduce_seconds(
        count, size, latency_seconds=1e-5, bandwidth_bytes_per_second=bandwidth
    )
    each = [
        float(all_reduce(count, size).seconds(latency_seconds=1e-5, bandwidth_bytes_per_second=bandwidth))
        for all_reduce in ALL_REDUCES.values()
    ]
    assert float(seconds) == min(each) == each[int(which)]


def test_best_changes_with_size() -> None:
    seconds, which = collectives.best_all_reduce_seconds(
        8, np.array([8.0, 1e9]), latency_seconds=1e-5, bandwidth_bytes_per_second=1e10
    )
    names = list(ALL_REDUCES)
    assert [names[place] for place in which] == ["recursive doubling", "halving doubling"]
    assert seconds[0] == pytest.approx(3e-5, rel=1e-3)  # three messages


TABLE = ((2, (1e3, 1e6), (1e-5, 1e-3)), (8, (1e3, 1e6), (4e-5, 4e-3)))


@pytest.mark.parametrize(
    ("count", "size", "seconds"),
    [
        (2, 1e3, 1e-5),
        (2, 10**4.5, 1e-4),  # half way between logarithms
        (2, 1.0, 1e-5),  # latency
        (2, 1e8, 1e-1),  # bandwidth
        (4, 1e3, 2e-5),  # half way between 2 and 8
        (16, 1e6, 4e-3 * (15 / 16) / (7 / 8)),
        (1, 1e6, 0.0),
        (2, 0.0, 1e-5),
    ],
)
def test_measured_table_by_hand(count: int, size: float, seconds: float) -> None:
    found = collectives.measured_all_reduce_seconds(TABLE, count, size)
    assert float(found) == pytest.approx(seconds, rel=1e-12)


def test_measured_table_takes_arrays() -> None:
    found = collectives.measured_all_reduce_seconds(TABLE, np.array([[2], [8]]), np.array([1e3, 1e6, 1e8]))
    assert found == pytest.approx(np.array([[1e-5, 1e-3, 1e-1], [4e-5, 4e-3, 4e-1]]))


@pytest.mark.parametrize(
    "table",
    [(), ((1, (1.0,), (1.0,)),), ((2, (2.0, 1.0), (1.0, 1.0)),), ((2, (1.0,), (0.0,)),), ((2, (1.0,), ()),)],
)
def test_bad_tables_are_refused(table: tuple[tuple[int, tuple[float, ...], tuple[float, ...]], ...]) -> None:
    with pytest.raises(InputError):
        collectives.measured_all_reduce_seconds(table, 2, 1.0)


def _enumerated(layout: Layout, per_node: int) -> dict[str, tuple[int, int, int]]:
    """Nodes, members in a node and groups that leave a node, by looking at every device."""
    order = layout.placement.split()
    where = {}
    for device in range(layout.num_devices):
        rest, place = device, {}
        for axis in order:
            rest, place[axis] = divmod(rest, getattr(layout, axis))
        where[device] = place
    keys = {axis: [each for each in order if each != axis] for axis in order}
    groups = {axis: [tuple(place[each] for each in keys[axis]) for place in where.values()] for axis in order}
    groups["fsdp"] = [
        (*key, place["data"] // layout.fsdp)
        for key, place in zip(groups["data"], where.values(), strict=True)
    ]
    groups["replica"] = [
        (*key, place["data"] % layout.fsdp) for key, place in zip(groups["data"], where.values(), strict=True)
    ]
    found = {}
    for axis, ids in groups.items():
        nodes_of: dict[tuple[int, ...], list[int]] = {}
        for device, group in enumerate(ids):
            nodes_of.setdefault(group, []).append(device // per_node)
        nodes = max(len(set(each)) for each in nodes_of.values())
        leaving = [node for each in nodes_of.values() if len(set(each)) > 1 for node in set(each)]
        fullest = max(each.count(node) for each in nodes_of.values() for node in each)
        found[axis] = (nodes, fullest, max([1, *(leaving.count(node) for node in set(leaving))]))
    return found


DEGREES = st.sampled_from([1, 2, 3, 4, 5, 6, 8])
POWERS = st.sampled_from([1, 2, 4, 8, 16])


@given(tensor=POWERS, pipeline=POWERS, fsdp=POWERS, replicas=POWERS, placement=st.sampled_from(PLACEMENTS))
def test_groups_of_powers_of_two_lie_where_enumeration_finds_them(
    tensor: int, pipeline: int, fsdp: int, replicas: int, placement: str
) -> None:
    layout = Layout(tensor=tensor, data=fsdp * replicas, pipeline=pipeline, fsdp=fsdp, placement=placement)
    if layout.num_devices > 512:
        return
    geometry = collectives.axis_geometry(Layouts.of([layout]), 8)
    for axis, expected in _enumerated(layout, 8).items():
        group = getattr(geometry, axis)
        assert (int(group.nodes[0]), int(group.in_node[0]), int(group.sharing[0])) == expected, axis


@given(
    tensor=DEGREES, data=DEGREES, pipeline=DEGREES, placement=st.sampled_from(PLACEMENTS),
    per_node=st.sampled_from([1, 2, 3, 4, 6, 8]),
)  # fmt: skip
def test_groups_across_node_borders_are_never_thought_nearer_than_they_are(
    tensor: int, data: int, pipeline: int, placement: str, per_node: int
) -> None:
    layout = Layout(tensor=tensor, data=data, pipeline=pipeline, placement=placement)
    geometry = collectives.axis_geometry(Layouts.of([layout]), per_node)
    for axis, (nodes, _, sharing) in _enumerated(layout, per_node).items():
        group = getattr(geometry, axis)
        blocks = layout.num_devices // int(group.degree[0] * group.stride[0])
        every_start = blocks >= per_node // math.gcd(int(group.degree[0] * group.stride[0]), per_node)
        assert int(group.nodes[0]) == nodes if every_start else int(group.nodes[0]) >= nodes, axis
        assert int(group.sharing[0]) >= sharing, axis
        assert int(group.in_node[0] * group.nodes[0]) >= int(group.degree[0])


def test_three_tensor_devices_on_nodes_of_eight_cross_a_border() -> None:
    # Devices 6, 7 and 8: two nodes.
    tensor = collectives.axis_geometry(Layouts.of([Layout(tensor=3, data=8)]), 8).tensor
    assert (int(tensor.nodes[0]), int(tensor.in_node[0])) == (2, 2)
