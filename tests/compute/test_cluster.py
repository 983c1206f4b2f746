from __future__ import annotations

import math
from typing import Any

import pytest

from leptonai.compute.cluster import Cluster, Device, Host, Link, Node, hosts_of
from leptonai.core.errors import InputError

A, B = Node(name="a"), Node(name="b")
LINK = Link(ends=("a", "b"), bandwidth_bytes_per_second=1e9)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        (Device, {"kind": "cpu", "count": 0}),
        (Device, {"kind": "cpu", "cores": 0}),
        (Device, {"kind": "gpu", "cores": 4}),
        (Device, {"kind": "gpu", "memory_bytes": 0}),
        (Device, {"kind": "gpu", "peak_flops": math.inf}),
        (Link, {"ends": ("a", "a"), "bandwidth_bytes_per_second": 1.0}),
        (Link, {"ends": ("a", "b"), "bandwidth_bytes_per_second": 0.0}),
        (Link, {"ends": ("a", "b"), "bandwidth_bytes_per_second": math.nan}),
        (Link, {"ends": ("a", "b"), "bandwidth_bytes_per_second": 1.0, "latency_seconds": -1.0}),
        (Cluster, {"name": "c", "nodes": ()}),
        (Cluster, {"name": "c", "nodes": (A,), "num_workers": 0}),
        (Cluster, {"name": "c", "nodes": (A,), "threads_per_worker": 0}),
        (Cluster, {"name": "c", "nodes": (A,), "hang_seconds": 0.0}),
        (Cluster, {"name": "c", "nodes": (A, B, A)}),
        (Cluster, {"name": "c", "nodes": (A,), "links": (LINK,)}),
        (Cluster, {"name": "c", "nodes": (A, B), "links": (LINK, LINK)}),
    ],
)
def test_a_value_outside_its_range_is_refused(kind: Any, values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=kind.__name__):
        kind(**values)


def test_cores_and_devices_are_counted() -> None:
    node = Node(
        name="a",
        devices=(Device(kind="cpu", count=2, cores=8), Device(kind="cpu"), Device(kind="gpu", count=4)),
    )
    assert (node.num_cores, node.num_devices("gpu"), node.num_devices("tpu")) == (16, 4, 0)
    assert Cluster(name="c", nodes=(node, B)).num_cores == 16


def test_a_link_is_found_from_both_ends() -> None:
    cluster = Cluster(name="c", nodes=(A, B), links=(LINK,))
    assert cluster.link_between("a", "b") is cluster.link_between("b", "a") is LINK
    assert cluster.link_between("a", "a") is None


@pytest.mark.parametrize(
    ("address", "local"),
    [("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("::1", True), ("10.0.0.1", False),
     ("0.0.0.0", False), ("node-7.lab", False)],
)  # fmt: skip
def test_only_loopback_addresses_are_this_machine(address: str, local: bool) -> None:
    assert Node(name="a", address=address).is_local is local


def test_loopback_nodes_are_one_machine_with_no_more_cores_than_it_has() -> None:
    def node(name: str, cores: int | None, address: str = "127.0.0.1") -> Node:
        return Node(name=name, address=address, devices=(Device(kind="cpu", cores=cores),))

    nodes = (node("far", 3, "10.0.0.1"), node("a", 1), node("b", 1))
    far = Host(nodes=("far",), cores=(0, 1, 2), is_local=False)
    found = hosts_of(Cluster(name="c", nodes=nodes), (4, 5, 6))
    assert found == (Host(nodes=("a", "b"), cores=(4, 5), is_local=True), far)
    assert hosts_of(Cluster(name="c", nodes=(node("a", 64),)), (4, 5))[0].cores == (4, 5)
