from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from leptonai.compute.cluster import Cluster, Device, Node
from leptonai.compute.plan import Plan, Tuning
from leptonai.compute.planner import plan
from leptonai.compute.workload import Workload
from leptonai.core.errors import InputError

WORK = Workload(
    num_parameters=100,
    parameter_bytes=400,
    flops_per_example=600.0,
    activation_bytes_per_example=40,
    num_examples=1000,
    global_batch_size=64,
    steps_per_epoch=16,
    total_steps=16,
)


def one_node(num_workers: int, *, cores: int = 2, gpus: int = 0, **values: Any) -> Cluster:
    devices = [Device(kind="cpu", cores=cores)]
    if gpus:
        devices.append(Device(kind="gpu", count=gpus))
    return Cluster(
        name="c", nodes=(Node(name="a", devices=tuple(devices)),), num_workers=num_workers, **values
    )


@st.composite
def clusters(draw: st.DrawFn) -> Cluster:
    gpus = draw(st.booleans())
    nodes = []
    for index in range(draw(st.integers(1, 4))):
        devices = [Device(kind="cpu", cores=draw(st.integers(1, 6)), count=draw(st.integers(1, 2)))]
        if gpus and draw(st.booleans()):
            devices.append(Device(kind="gpu", count=draw(st.integers(1, 3))))
        address = draw(st.sampled_from(["127.0.0.1", f"10.0.0.{index}"]))
        nodes.append(Node(name=f"n{index}", address=address, devices=tuple(devices)))
    return Cluster(
        name="c",
        nodes=tuple(nodes),
        num_workers=draw(st.integers(1, 12)),
        threads_per_worker=draw(st.none() | st.integers(1, 4)),
    )


CORES = st.lists(st.integers(0, 100), min_size=1, max_size=12, unique=True).map(tuple)


def machine_of(cluster: Cluster, node: str) -> str:
    return next("here" if each.is_local else each.name for each in cluster.nodes if each.name == node)


@given(cluster=clusters(), cores=CORES)
def test_no_core_is_given_twice(cluster: Cluster, cores: tuple[int, ...]) -> None:
    found = plan(WORK, cluster, available_cores=cores)
    given_cores = [(machine_of(cluster, each.node), core) for each in found.placements for core in each.cores]
    assert len(given_cores) == len(set(given_cores))
    assert {core for machine, core in given_cores if machine == "here"} <= set(cores)
    assert all(len(each.cores) in (0, each.threads) for each in found.placements)


@given(cluster=clusters(), cores=CORES)
def test_a_worker_is_pinned_unless_the_plan_warns_that_workers_share(
    cluster: Cluster, cores: tuple[int, ...]
) -> None:
    found = plan(WORK, cluster, available_cores=cores)
    unpinned = any(not each.cores for each in found.placements)
    assert unpinned == any("cores and will run slower" in warning for warning in found.warnings)


@given(cluster=clusters(), cores=CORES)
def test_every_worker_is_placed_once_on_a_node_that_can_compute(
    cluster: Cluster, cores: tuple[int, ...]
) -> None:
    found = plan(WORK, cluster, available_cores=cores)
    assert len(found.placements) == cluster.num_workers
    kinds = {each.device_kind for each in found.placements}
    has_gpus = any(node.num_devices("gpu") for node in cluster.nodes)
    assert kinds == ({"gpu"} if has_gpus else {"cpu"})
    for each in found.placements:
        node = next(node for node in cluster.nodes if node.name == each.node)
        assert node.num_devices(each.device_kind) > 0
        assert (each.device_index is None) == (each.device_kind == "cpu")


@given(cluster=clusters(), cores=CORES)
def test_nccl_is_chosen_only_where_each_worker_has_a_gpu_of_its_own(
    cluster: Cluster, cores: tuple[int, ...]
) -> None:
    found = plan(WORK, cluster, available_cores=cores)
    gpus = [(machine_of(cluster, each.node), each.device_index) for each in found.placements]
    own = found.placements[0].device_kind == "gpu" and len(gpus) == len(set(gpus))
    expected = "none" if len(found.placements) == 1 else "nccl" if own else "gloo"
    assert found.backend == expected


@given(cluster=clusters(), cores=CORES)
def test_equal_arguments_give_equal_plans(cluster: Cluster, cores: tuple[int, ...]) -> None:
    assert plan(WORK, cluster, available_cores=cores) == plan(WORK, cluster, available_cores=cores)


@given(cluster=clusters(), cores=CORES)
def test_no_node_gets_a_worker_while_another_has_twice_its_room(
    cluster: Cluster, cores: tuple[int, ...]
) -> None:
    assume(not any(node.num_devices("gpu") for node in cluster.nodes))
    counts = {node.name: 0 for node in cluster.nodes}
    for each in plan(WORK, cluster, available_cores=cores).placements:
        counts[each.node] += 1
    room = {node.name: node.num_cores for node in cluster.nodes}
    for full in counts:
        for other in counts:
            assert counts[full] == 0 or counts[full] / room[full] <= (counts[other] + 1) / room[other]


def test_one_worker_is_single_with_all_cores_and_no_exchange() -> None:
    found = plan(WORK, one_node(1), available_cores=(0, 1))
    assert (found.strategy, found.backend) == ("single", "none")
    assert found.placements[0].cores == (0, 1)
    assert found.warnings == ()


def test_workers_share_the_cores_evenly_and_are_pinned() -> None:
    found = plan(WORK, one_node(2, cores=5), available_cores=(3, 5, 7, 9, 11))
    assert (found.strategy, found.backend) == ("data_parallel", "gloo")
    assert [each.cores for each in found.placements] == [(3, 5), (7, 9)]
    assert found.tuning.threads == 2


def test_more_workers_than_cores_are_allowed_with_a_warning() -> None:
    found = plan(WORK, one_node(4), available_cores=(0, 1), for_run=True)
    assert found.warnings == ("4 workers on 2 cores: workers share cores and will run slower",)
    assert [each.cores for each in found.placements] == [()] * 4
    assert found.tuning.threads == 1


def test_more_threads_than_cores_are_warned_about() -> None:
    found = plan(WORK, one_node(2, threads_per_worker=2), available_cores=(0, 1))
    assert found.warnings == ("2 workers of 2 threads on 2 cores: workers share cores and will run slower",)
    found = plan(WORK, one_node(1, threads_per_worker=4), available_cores=(0, 1))
    assert found.warnings == (
        "1 worker of 4 threads on 2 cores: its threads share cores and will run slower",
    )


def test_a_node_that_declares_more_cores_than_there_are_is_warned_about() -> None:
    found = plan(WORK, one_node(1, cores=64), available_cores=(0, 1))
    assert found.warnings == ("a node of this machine declares 64 cores, 2 are available",)
    assert found.placements[0].cores == (0, 1)


def test_two_nodes_on_one_machine_divide_its_cores() -> None:
    nodes = tuple(Node(name=name, devices=(Device(kind="cpu", cores=2),)) for name in "ab")
    found = plan(WORK, Cluster(name="c", nodes=nodes, num_workers=2), available_cores=(0, 1))
    assert [(each.node, each.cores) for each in found.placements] == [("a", (0,)), ("b", (1,))]


def test_what_autotune_chose_decides_threads() -> None:
    tuning = Tuning(precision="bfloat16", threads=1, why="measured")
    found = plan(WORK, one_node(1), available_cores=(0, 1), tuning=tuning)
    assert found.tuning == tuning
    assert found.placements[0].cores == (0,)


def test_gpus_are_given_in_turn() -> None:
    found = plan(WORK, one_node(2, gpus=2), available_cores=(0, 1), num_gpus=2, for_run=True)
    assert [each.device_index for each in found.placements] == [0, 1]
    assert (found.backend, found.warnings) == ("nccl", ())


def test_workers_that_share_a_gpu_exchange_over_gloo_with_a_warning() -> None:
    found = plan(WORK, one_node(2, gpus=1), available_cores=(0, 1), num_gpus=1, for_run=True)
    assert [each.device_index for each in found.placements] == [0, 0]
    assert found.backend == "gloo"
    assert any("share GPUs" in warning for warning in found.warnings)


def test_two_nodes_on_one_machine_divide_its_gpus() -> None:
    nodes = tuple(Node(name=name, devices=(Device(kind="gpu"),)) for name in "ab")
    found = plan(WORK, Cluster(name="c", nodes=nodes, num_workers=2), available_cores=(0, 1), num_gpus=2)
    assert [each.device_index for each in found.placements] == [0, 1]
    assert [each.cores for each in found.placements] == [(0,), (1,)]


def test_missing_gpus_are_an_error_for_a_run_and_a_warning_for_a_plan() -> None:
    cluster = one_node(1, gpus=2)
    with pytest.raises(InputError, match="declares 2 GPUs, this machine has 1"):
        plan(WORK, cluster, available_cores=(0, 1), num_gpus=1, for_run=True)
    found = plan(WORK, cluster, available_cores=(0, 1), num_gpus=1)
    assert any("it cannot run" in warning for warning in found.warnings)


def test_gpus_the_file_does_not_declare_are_told() -> None:
    found = plan(WORK, one_node(1), available_cores=(0, 1), num_gpus=1)
    assert any("does not declare" in warning for warning in found.warnings)


def test_another_machine_is_an_error_for_a_run_but_can_be_planned() -> None:
    devices = (Device(kind="cpu", cores=4),)
    nodes = (Node(name="a", devices=devices), Node(name="b", address="10.0.0.2", devices=devices))
    cluster = Cluster(name="c", nodes=nodes, num_workers=2)
    with pytest.raises(InputError, match=r"node 'b' has the address 10\.0\.0\.2"):
        plan(WORK, cluster, available_cores=(0, 1, 2, 3), for_run=True)
    found: Plan = plan(WORK, cluster, available_cores=(0, 1, 2, 3))
    assert [each.node for each in found.placements] == ["a", "b"]
    assert found.placements[0].cores == found.placements[1].cores == (0, 1, 2, 3)


def test_tpus_alone_cannot_compute_and_beside_a_cpu_are_told_to_lie_idle() -> None:
    tpu = Device(kind="tpu", count=4)
    with pytest.raises(InputError, match="no node has a cpu or gpu"):
        plan(WORK, Cluster(name="c", nodes=(Node(name="a", devices=(tpu,)),)), available_cores=(0,))
    both = Node(name="a", devices=(tpu, Device(kind="cpu", cores=1)))
    found = plan(WORK, Cluster(name="c", nodes=(both,)), available_cores=(0,))
    assert found.warnings == ("the TPUs of node a are not used",)


def test_more_workers_than_examples_in_a_step_are_warned_about() -> None:
    small = dataclasses.replace(WORK, global_batch_size=1)
    found = plan(small, one_node(2), available_cores=(0, 1))
    assert any("some workers have nothing to do" in warning for warning in found.warnings)


def test_no_available_core_is_an_input_error() -> None:
    with pytest.raises(InputError, match="at least one available core"):
        plan(WORK, one_node(1), available_cores=())
