from __future__ import annotations

import pytest

from leptonai.compute.cluster import FABRIC_KINDS, Cluster
from leptonai.compute.cluster_file import ClusterFile
from leptonai.compute.topology.of_cluster import between_nodes, from_cluster, machine_of
from leptonai.compute.topology.paths import best_path
from leptonai.core.errors import InputError
from leptonai.core.files import parse_yaml
from tests.compute.topology.nets import RATE, net, plain

GPUS = "{kind: gpu, count: 4, memory: 80GB, peak: 300TFLOP/s, memory_bandwidth: 2TB/s}"
NODES = f"nodes: [{{name: n, count: 4, interconnect: 300GB/s, price: 8, devices: [{GPUS}]}}]\n"


def cluster_of(text: str) -> Cluster:
    return parse_yaml(text, where="c.yaml", model=ClusterFile).to_cluster(available_cores=2)


def test_links_and_devices_of_a_file_become_a_network() -> None:
    network = from_cluster(
        cluster_of(
            f"nodes: [{{name: a}}, {{name: b, interconnect: 300GB/s, devices: [{{kind: cpu}}, {GPUS}]}}]\n"
            "links: [{between: [a, b], bandwidth: 10GB/s, latency: 5us}]"
        )
    )
    assert [network.names[each] for each in network.devices] == ["a", "b/gpu0", "b/gpu1", "b/gpu2", "b/gpu3"]
    path = best_path(network, network.place("a"), network.place("b/gpu3"))
    assert [network.names[each] for each in path.vertices] == ["a", "b/switch", "b/gpu3"]
    assert (path.bandwidth_bytes_per_second, path.latency_seconds) == (10e9, 5e-6)


@pytest.mark.parametrize("kind", ["star", "ring", "mesh", *FABRIC_KINDS])
def test_every_topology_of_a_file_becomes_a_network_and_a_machine(kind: str) -> None:
    cluster = cluster_of(NODES + f"topology: {{kind: {kind}, bandwidth: 10GB/s, latency: 2us}}")
    assert len(from_cluster(cluster).devices) == 16
    machine = machine_of(cluster)
    assert (machine.num_nodes, machine.devices_per_node, machine.device.peak_flops) == (4, 4, 300e12)
    assert machine.in_node.bandwidth_bytes_per_second == 300e9
    assert machine.price_per_device_hour == 2.0
    # Four rails of 10 GB/s each, or one cable out of each node that its four devices share.
    wanted = 40e9 if kind == "rail_optimised" else 10e9
    assert machine.between_nodes.bandwidth_bytes_per_second == pytest.approx(wanted)


def test_contention_is_in_what_nodes_reach() -> None:
    assert between_nodes(net("switch", 4, nics=4)).bandwidth_bytes_per_second == pytest.approx(4 * RATE)
    # Round a circle of four in a line's order every cable carries one node's traffic; in a star the hub's do as well.
    assert between_nodes(plain("ring", 4)).bandwidth_bytes_per_second == pytest.approx(RATE)
    # Nodes 0 and 1 of a torus of 4 x 2 are neighbours; 3 and 4 are not, and share their way with others.
    assert between_nodes(net("torus", 8, dims=(2, 4))).bandwidth_bytes_per_second <= RATE * (1 + 1e-9)


def test_one_cpu_node_is_one_device() -> None:
    cluster = cluster_of(
        "nodes: [{name: a, devices: [{kind: cpu, count: 2, cores: 8, memory: 1GB, peak: 10GFLOP/s, "
        "memory_bandwidth: 20GB/s}]}]"
    )
    machine = machine_of(cluster)
    assert (machine.num_devices, machine.device.peak_flops) == (1, 160e9)
    assert machine.device.memory_bandwidth_bytes_per_second == 40e9


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "nodes: [{name: a}, {name: b}, {name: c}]\nlinks: [{between: [a, c], bandwidth: 1GB/s}]",
            "each other: a, c; and b",
        ),
        ("nodes: [{name: a, devices: [{kind: gpu, count: 2}]}]", "node a: the rate between its 2 devices is missing"),
        (
            "nodes: [{name: a}, {name: b, interconnect: 1GB/s, devices: [{kind: gpu, count: 2}]}]\n"
            "topology: {kind: fat_tree, bandwidth: 1GB/s}", "nodes a and b differ",
        ),
    ],
)  # fmt: skip
def test_a_network_that_is_none_is_told(text: str, said: str) -> None:
    with pytest.raises(InputError) as caught:
        from_cluster(cluster_of(text))
    assert said in caught.value.message
    assert caught.value.hint


def test_a_machine_needs_rates_and_equal_nodes() -> None:
    with pytest.raises(InputError, match="lacks peak, memory, memory_bandwidth"):
        machine_of(cluster_of("nodes: [{name: a, devices: [{kind: gpu}]}]"))
    unequal = (
        "nodes: [{name: a, devices: [{kind: gpu, peak: 1TFLOP/s}]}, {name: b, devices: [{kind: gpu}]}]\n"
        "topology: {kind: ring, bandwidth: 1GB/s}"
    )
    with pytest.raises(InputError, match="the nodes have different devices"):
        machine_of(cluster_of(unequal))
