from __future__ import annotations

import dataclasses
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.compute.cluster import Cluster, Device, Link, Node, TopologyKind
from leptonai.compute.cluster_file import topology_pairs
from leptonai.compute.cost import GPU_BYTES_PER_SECOND, LOOPBACK_BYTES_PER_SECOND, ring_bytes, widest_route
from leptonai.compute.plan import Estimate
from leptonai.compute.planner import plan
from leptonai.compute.workload import Workload

WORK = Workload(
    num_parameters=25_000_000,
    parameter_bytes=100_000_000,
    flops_per_example=1e9,
    activation_bytes_per_example=40,
    num_examples=1000,
    global_batch_size=64,
    steps_per_epoch=16,
    total_steps=16,
)


def cluster_of(
    num_nodes: int = 1, *, num_workers: int, peak: float | None = None, kind: TopologyKind = "mesh",
    bandwidth: float | None = None, latency: float = 0.0, local: bool = False, device: str = "cpu",
) -> Cluster:  # fmt: skip
    names = tuple(f"n{index}" for index in range(num_nodes))
    cpu = Device(kind="cpu", cores=4, peak_flops=peak if device == "cpu" else None)
    devices = (cpu,) if device == "cpu" else (cpu, Device(kind="gpu", count=2, peak_flops=peak))
    local = local or num_nodes == 1
    nodes = tuple(
        Node(name=name, address="127.0.0.1" if local else f"10.0.0.{index}", devices=devices)
        for index, name in enumerate(names)
    )
    pairs = topology_pairs(kind, names) if bandwidth else ()
    links = tuple(
        Link(ends=pair, bandwidth_bytes_per_second=bandwidth or 1.0, latency_seconds=latency)
        for pair in pairs
    )
    return Cluster(name="c", nodes=nodes, links=links, num_workers=num_workers)


def estimate_of(cluster: Cluster, *, measured: float | None = 1e10, work: Workload = WORK) -> Estimate:
    return plan(work, cluster, available_cores=(0, 1, 2, 3), measured_core_flops=measured).estimate


def test_the_total_is_transfer_plus_compute_by_the_formula() -> None:
    found = estimate_of(cluster_of(2, num_workers=2, peak=5e9, bandwidth=1.25e9))
    assert found.bytes_exchanged == 100_000_000
    assert found.transfer_seconds == pytest.approx(100e6 / 1.25e9)
    # FLOPs / (cores x FLOP/s per core x nodes)
    assert found.compute_seconds == pytest.approx(64e9 / (4 * 5e9 * 2))
    assert found.total_seconds == pytest.approx(0.08 + 1.6)
    assert any("1.25 GB/s between n0 and n1 by the cluster file" in words for words in found.assumptions)
    assert any("peak of 5 GFLOP/s" in words for words in found.assumptions)


def test_workers_of_one_machine_exchange_at_the_assumed_rate_which_is_said() -> None:
    found = estimate_of(cluster_of(num_workers=4))
    assert found.bandwidth_bytes_per_second == LOOPBACK_BYTES_PER_SECOND
    assert found.transfer_seconds == pytest.approx(150e6 / LOOPBACK_BYTES_PER_SECOND)
    assert any(
        "1.4 GB/s assumed between two processes of one machine" in words for words in found.assumptions
    )
    assert any("10 GFLOP/s, measured on one of this machine" in words for words in found.assumptions)


def test_one_worker_exchanges_nothing() -> None:
    found = estimate_of(cluster_of(num_workers=1))
    assert (found.bytes_exchanged, found.transfer_seconds) == (0, 0.0)
    assert found.total_seconds == found.compute_seconds == pytest.approx(64e9 / 4e10)
    assert "one worker exchanges nothing" in found.assumptions


def test_workers_that_share_cores_compute_no_faster_than_the_cores() -> None:
    few, many = estimate_of(cluster_of(num_workers=4)), estimate_of(cluster_of(num_workers=16))
    assert many.flops_per_second == few.flops_per_second == 4e10


def test_an_unknown_speed_leaves_the_total_open_and_says_why() -> None:
    found = estimate_of(cluster_of(num_workers=2), measured=None)
    assert (found.flops_per_second, found.compute_seconds, found.total_seconds) == (None, None, None)
    assert found.transfer_seconds is not None
    assert any(words.startswith("compute time not known: nobody measured") for words in found.assumptions)


def test_nodes_without_a_link_leave_the_total_open_and_say_why() -> None:
    found = estimate_of(cluster_of(2, num_workers=2))
    assert (found.transfer_seconds, found.total_seconds) == (None, None)
    assert any("no link joins n0 and n1" in words for words in found.assumptions)
    assert estimate_of(cluster_of(2, num_workers=2, local=True)).total_seconds is not None


def test_the_slowest_link_of_the_ring_decides() -> None:
    cluster = cluster_of(3, num_workers=3, bandwidth=2e9, kind="ring")
    slow = dataclasses.replace(cluster.links[1], bandwidth_bytes_per_second=1e9)
    # n1 and n2 may also go round by n0, which is wider than their own link.
    around = dataclasses.replace(cluster, links=(cluster.links[0], slow, cluster.links[2]))
    assert estimate_of(around).bandwidth_bytes_per_second == 2e9
    line = dataclasses.replace(cluster, links=(cluster.links[0], slow))
    assert estimate_of(line).bandwidth_bytes_per_second == 1e9


def test_latency_is_told_beside_the_sum() -> None:
    found = estimate_of(cluster_of(2, num_workers=2, bandwidth=1e9, latency=50e-6))
    assert any("latency is not in the sum; at most 100 us" in words for words in found.assumptions)
    assert found.transfer_seconds == 0.1


def test_gpus_compute_at_their_declared_peak_or_not_known() -> None:
    found = estimate_of(cluster_of(num_workers=2, peak=1e14, device="gpu"))
    assert found.flops_per_second == 2e14
    assert found.bandwidth_bytes_per_second == GPU_BYTES_PER_SECOND
    assert estimate_of(cluster_of(num_workers=4, peak=1e14, device="gpu")).flops_per_second == 2e14
    unknown = estimate_of(cluster_of(num_workers=2, device="gpu"))
    assert unknown.total_seconds is None
    assert any("give the gpu of node n0 a peak" in words for words in unknown.assumptions)


def test_all_wait_for_the_slowest_node() -> None:
    cluster = cluster_of(2, num_workers=2, peak=1e10, bandwidth=1e9)
    slow = dataclasses.replace(cluster.nodes[1], devices=(Device(kind="cpu", cores=4, peak_flops=1e9),))
    found = estimate_of(dataclasses.replace(cluster, nodes=(cluster.nodes[0], slow)))
    assert found.flops_per_second == 2 * 4 * 1e9
    assert "equal shares: all workers wait for the slowest" in found.assumptions


RATES = st.floats(1e6, 1e12)


@given(
    bandwidth=RATES, faster=st.floats(1.0, 100.0), num_nodes=st.integers(2, 5), num_workers=st.integers(2, 8),
    kind=st.sampled_from(get_args(TopologyKind)), which=st.integers(0, 9),
)  # fmt: skip
def test_more_bandwidth_on_any_link_is_never_slower(
    bandwidth: float, faster: float, num_nodes: int, num_workers: int, kind: TopologyKind, which: int
) -> None:
    before = cluster_of(num_nodes, num_workers=num_workers, bandwidth=bandwidth, kind=kind)
    links = list(before.links)
    changed = links[which % len(links)]
    links[which % len(links)] = dataclasses.replace(changed, bandwidth_bytes_per_second=bandwidth * faster)
    after = dataclasses.replace(before, links=tuple(links))
    old, new = estimate_of(before).total_seconds, estimate_of(after).total_seconds
    assert old is not None
    assert new is not None
    assert new <= old


@given(rate=RATES, faster=st.floats(1.0, 100.0), num_workers=st.integers(1, 8))
def test_faster_cores_and_smaller_work_are_never_slower(rate: float, faster: float, num_workers: int) -> None:
    cluster = cluster_of(num_workers=num_workers)
    slow, fast = estimate_of(cluster, measured=rate), estimate_of(cluster, measured=rate * faster)
    less = estimate_of(cluster, measured=rate, work=dataclasses.replace(WORK, flops_per_example=5e8))
    assert slow.total_seconds is not None
    assert fast.total_seconds is not None
    assert less.total_seconds is not None
    assert fast.total_seconds <= slow.total_seconds
    assert less.total_seconds < slow.total_seconds


@given(gradient=st.integers(0, 2**50), num_workers=st.integers(1, 1000))
def test_a_ring_sends_less_than_twice_the_gradient(gradient: int, num_workers: int) -> None:
    sent = ring_bytes(gradient, num_workers)
    assert 0 <= sent <= 2 * gradient
    assert sent <= ring_bytes(gradient, num_workers + 1)


def test_the_widest_route_may_go_over_other_nodes() -> None:
    cluster = cluster_of(3, num_workers=1, bandwidth=1e9, kind="star", latency=1e-3)
    assert widest_route(cluster, "n1", "n2") == (1e9, 2e-3)
    assert widest_route(cluster, "n0", "n2") == (1e9, 1e-3)
    assert widest_route(dataclasses.replace(cluster, links=()), "n0", "n2") is None
