from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.compute.cluster import (
    FABRIC_KINDS,
    Cluster,
    Device,
    Fabric,
    FabricKind,
    Link,
    Node,
    TopologyKind,
)
from leptonai.compute.cluster_file import ClusterFile, read_cluster, topology_pairs
from leptonai.compute.reference import FULL
from leptonai.core.errors import InputError
from leptonai.core.files import parse_yaml


def cluster_of(text: str, available_cores: int = 2) -> Cluster:
    return parse_yaml(text, where="c.yaml", model=ClusterFile).to_cluster(available_cores=available_cores)


def told(text: str) -> str:
    with pytest.raises(InputError) as caught:
        cluster_of(text)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_three_lines_are_enough(tmp_path: Path) -> None:
    path = tmp_path / "cluster.yaml"
    path.write_text("nodes:\n  - name: laptop\nworkers: 2\n")
    laptop = Node(name="laptop", address="127.0.0.1", devices=(Device(kind="cpu", cores=6),))
    assert read_cluster(path, available_cores=6) == Cluster(name="cluster", nodes=(laptop,), num_workers=2)


def test_the_full_form_says_everything() -> None:
    devices = (Device(kind="cpu", cores=4, memory_bytes=16 * 2**30, peak_flops=48e9),)
    assert cluster_of(FULL) == Cluster(
        name="lab",
        engine="local",
        nodes=(Node(name="left", devices=devices), Node(name="right", devices=devices)),
        links=(Link(ends=("left", "right"), bandwidth_bytes_per_second=1.25e9, latency_seconds=50e-6),),
        num_workers=4,
        threads_per_worker=2,
        hang_seconds=60.0,
    )


def test_a_device_may_be_a_gpu_or_tpu_without_cores() -> None:
    found = cluster_of("nodes: [{name: a, devices: [{kind: gpu, count: 8, memory: 80GiB}, {kind: tpu}]}]")
    assert found.nodes[0].devices == (
        Device(kind="gpu", count=8, memory_bytes=80 * 2**30),
        Device(kind="tpu"),
    )


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("nodes: [{name: a}]\nworkrs: 2", 2, "unknown key 'workrs'\n  hint: did you mean 'workers'?"),
        ("nodes:\n  - name: a\n    adress: x", 3, "unknown key 'adress' in nodes[0]\n  hint: did you mean 'address'?"),
        ("nodes: [{name: a}]\nworkers: 0", 2, "workers.count: expected at least 1, found 0"),
        ("nodes: [{name: a}]\nworkers: -1", 2, "expected at least 1, found -1"),
        ("nodes: [{name: a}]\nworkers: many", 2, "workers: expected keys count, threads, hang, found 'many'"),
        ("nodes: [{name: a}]\nworkers:\n  count: 1\n  hang: 60", 4, "workers.hang: 60 has no unit"),
        ("nodes: [{name: a}]\nworkers: {count: 1, hang: 0s}", 2, "workers.hang: expected more than 0"),
        ("nodes:\n  - name: a\n  - name: b\n  - name: a", 4, "node name 'a' is used twice, first by nodes[0]"),
        ("nodes: [{name: a}]\nengine: loca", 2, "unknown value 'loca'\n  hint: did you mean 'local'?"),
        ("nodes: [{name: a}]\nengine: slurm", 2, "unknown value 'slurm'\n  hint: one of local"),
        ("workers: 2", 1, "key 'nodes' is missing"),
        ("workers: 2\nnodes: []", 2, "nodes: expected at least one node"),
        ("nodes:\n  - name: a\n    address: 'no address'", 3, "'no address' is not an address"),
        ("nodes:\n  - name: ''", 2, "nodes[0].name: expected text that is not empty"),
        (
            "nodes:\n- name: a\n  devices:\n  - kind: gpu\n    memory: 80Gb", 5,
            "nodes[0].devices[0].memory: 'Gb' is not a unit of a size\n  hint: did you mean GB?",
        ),
        ("nodes:\n- name: a\n  devices:\n  - kind: gpu\n    cores: 4", 5, "cores are only for a cpu, not for a gpu"),
        ("nodes:\n- name: a\n  devices:\n  - kind: gpo", 4, "unknown value 'gpo'\n  hint: did you mean 'gpu'?"),
        (
            "nodes: [{name: left}, {name: right}]\nlinks:\n- between: [left, rigth]\n  bandwidth: 1GB/s", 3,
            "link to the unknown node 'rigth'\n  hint: did you mean 'right'?",
        ),
        (
            "nodes: [{name: a}, {name: b}]\nlinks:\n- between: [a, b]\n  bandwidth: 10Gb", 4,
            "links[0].bandwidth: 'Gb' is not a unit of a rate",
        ),
        ("nodes: [{name: a}]\nlinks:\n- {between: [a, a], bandwidth: 1GB/s}", 3, "link from 'a' to itself"),
        (
            "nodes: [{name: a}, {name: b}]\nlinks:\n- {between: [a, b], bandwidth: 1GB/s}\n"
            "- {between: [b, a], bandwidth: 1GB/s}", 4, "a second link between b and a",
        ),
        (
            "nodes: [{name: a}, {name: b}]\nlinks: [{between: [a, b], bandwidth: 1GB/s}]\n"
            "topology: {kind: star, bandwidth: 1GB/s}", 3, "links and topology are both given",
        ),
        ("nodes: [{name: a}]\ntopology: {kind: tree, bandwidth: 1GB/s}", 2, "unknown value 'tree'"),
    ],
)  # fmt: skip
def test_a_wrong_file_is_told_with_its_line_and_hint(text: str, line: int, said: str) -> None:
    found = told(text)
    assert found.startswith(f"c.yaml:{line}: "), found
    assert said in found


def test_all_problems_of_a_file_are_told_at_once() -> None:
    found = told(
        "nodse: 1\n"
        "nodes:\n"
        "  - name: a\n"
        "    devices:\n"
        "      - {kind: cpu, memory: 4}\n"
        "  - name: a\n"
        "workers: 0\n"
        "links:\n"
        "  - {between: [a, c], bandwidth: 10gb/s}\n"
        "engine: lokal\n"
    )
    lines = [line for line in found.splitlines() if line.startswith("  c.yaml:")]
    assert found.splitlines()[0] == "c.yaml: 7 problems"
    assert [line.split(":")[1] for line in lines] == ["1", "5", "6", "7", "9", "9", "10"]


NAMES = st.lists(st.text("abcdef", min_size=1, max_size=4), min_size=1, max_size=7, unique=True).map(tuple)


@given(kind=st.sampled_from(get_args(TopologyKind)), names=NAMES)
def test_a_topology_joins_all_nodes_with_no_link_twice(kind: TopologyKind, names: tuple[str, ...]) -> None:
    pairs = topology_pairs(kind, names)
    assert len({frozenset(pair) for pair in pairs}) == len(pairs)
    assert all(first != second for first, second in pairs)
    reached = {names[0]}
    for _ in names:
        reached |= {name for pair in pairs if reached & set(pair) for name in pair}
    assert reached == set(names)
    expected = {"star": len(names) - 1, "mesh": len(list(combinations(names, 2)))}
    expected["ring"] = len(names) if len(names) > 2 else len(names) - 1
    assert len(pairs) == expected[kind]


def test_a_topology_becomes_links_of_its_bandwidth() -> None:
    cluster = cluster_of(
        "nodes: [{name: h}, {name: a}]\ntopology: {kind: star, bandwidth: 8Gb/s, latency: 1ms}"
    )
    link = Link(ends=("h", "a"), bandwidth_bytes_per_second=1e9, latency_seconds=1e-3)
    assert (cluster.links, cluster.topology) == ((link,), "star")


EQUAL = "nodes: [{name: gpu, count: 3, interconnect: 1GB/s, price: 2.5, devices: [{kind: gpu, count: 2}]}]\n"


def test_one_entry_stands_for_equal_nodes() -> None:
    cluster = cluster_of(EQUAL)
    assert [node.name for node in cluster.nodes] == ["gpu-0", "gpu-1", "gpu-2"]
    assert {(node.interconnect_bytes_per_second, node.price_per_hour) for node in cluster.nodes} == {
        (1e9, 2.5)
    }


def test_a_ring_joins_the_nodes_that_one_entry_stands_for() -> None:
    cluster = cluster_of(EQUAL + "topology: {kind: ring, bandwidth: 1GB/s}")
    assert [link.ends for link in cluster.links] == [
        ("gpu-0", "gpu-1"),
        ("gpu-1", "gpu-2"),
        ("gpu-2", "gpu-0"),
    ]
    assert cluster.fabric is None


@pytest.mark.parametrize("kind", FABRIC_KINDS)
def test_every_generated_shape_becomes_a_fabric(kind: FabricKind) -> None:
    cluster = cluster_of(EQUAL + f"topology: {{kind: {kind}, bandwidth: 8Gb/s, latency: 1us}}")
    wanted = Fabric(kind=kind, bandwidth_bytes_per_second=1e9, latency_seconds=1e-6)
    assert (cluster.fabric, cluster.links, cluster.topology) == (wanted, (), kind)


def test_a_named_accelerator_fills_in_what_the_file_leaves_out() -> None:
    cluster = cluster_of("nodes: [{name: a, devices: [{kind: gpu, accelerator: h100-sxm, memory: 40GiB}]}]")
    device = cluster.nodes[0].devices[0]
    assert (device.memory_bytes, device.accelerator) == (40 * 2**30, "h100-sxm")
    assert device.peak_flops == pytest.approx(989e12, rel=0.01)
    assert device.memory_bandwidth_bytes_per_second == pytest.approx(3.35e12, rel=0.01)
    assert cluster.nodes[0].interconnect_bytes_per_second == 450e9


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("nodes: [{name: a, devices: [{kind: gpu, accelerator: h100-smx}]}]", "did you mean"),
        ("nodes: [{name: a, devices: [{kind: cpu, accelerator: h100-sxm}]}]", "is a gpu, not a cpu"),
        ("nodes: [{name: a, count: 0}]", "nodes[0].count: expected at least 1"),
        ("nodes: [{name: a, price: -1.0}]", "nodes[0].price: expected at least 0"),
        ("nodes: [{name: a-1}, {name: a, count: 2}]", "node name 'a-1' is used twice, first by nodes[0]"),
        (EQUAL + "topology: {kind: torus, bandwidth: 1GB/s, dims: [2, 2]}", "lengths with product 3"),
        (
            EQUAL + "topology: {kind: islands, bandwidth: 1GB/s, island: 2}",
            "a divisor of the 3 nodes, found 2",
        ),
        (EQUAL + "topology: {kind: ring, bandwidth: 1GB/s, radix: 8}", "radix is not for kind ring"),
        (EQUAL + "topology: {kind: fat_tre, bandwidth: 1GB/s}", "did you mean 'fat_tree'?"),
        (
            EQUAL + "topology: {kind: fat_tree, bandwidth: 1GB/s, oversubscription: 0.5}",
            "expected at least 1",
        ),
    ],
)
def test_a_wrong_generated_network_is_told(text: str, said: str) -> None:
    assert said in told(text)
