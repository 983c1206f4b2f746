"""Steps of traced models: by hand, in the limits, and that more never costs what it cannot cost."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.compute.prediction.layouts import Layout, Layouts
from leptonai.compute.prediction.machine import Accelerator, Level, Machine
from leptonai.compute.prediction.workload_step import WHY_NOT, Efficiency, WorkloadPredictor
from leptonai.compute.workload import LayerWork, Operation, Workload
from leptonai.core.errors import InputError

DEVICE = Accelerator(
    name="toy", peak_flops=1e12, memory_bytes=16e9, memory_bandwidth_bytes_per_second=1e12, power_watts=100.0
)
IDEAL = Efficiency(products=1.0, memory=1.0, kernel_seconds=0.0, call_seconds=0.0)


def machine(nodes: int = 2, bandwidth: float = 1e10, price: float | None = 3.6) -> Machine:
    return Machine(
        device=DEVICE, devices_per_node=4, num_nodes=nodes, in_node=Level(bandwidth_bytes_per_second=1e11),
        between_nodes=Level(bandwidth_bytes_per_second=bandwidth), price_per_device_hour=price,
    )  # fmt: skip


def workload(num_layers: int = 4, batch: int = 64) -> Workload:
    """Equal layers of a million parameters: 1 GFLOP an example forward, 2 back, and nothing else."""
    names = [f"layers.{index}" for index in range(num_layers)]
    dims = ((1.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 0.0))
    return Workload(
        num_parameters=num_layers * 10**6, parameter_bytes=num_layers * 4 * 10**6,
        flops_per_example=num_layers * 3e9, activation_bytes_per_example=num_layers * 1000, num_examples=640,
        global_batch_size=batch, steps_per_epoch=10, total_steps=10,
        layers=tuple(
            LayerWork(name=name, kind="Linear", num_parameters=10**6, flops=3e9, output_bytes=500) for name in names
        ),
        operations=tuple(
            Operation(kind="matmul", layer=name, backward=back, flops=(0.0, 2e9 if back else 1e9), dims=dims)
            for name in names
            for back in (False, True)
        ),
    )  # fmt: skip


def predict(layout: Layout, *, work: Workload | None = None, on: Machine | None = None):  # type: ignore[no-untyped-def]
    predictor = WorkloadPredictor(work or workload(), on or machine(), efficiency=IDEAL, context_bytes=0.0)
    return predictor.predict(Layouts.of([layout]))


def test_one_device_computes_and_exchanges_nothing() -> None:
    found = predict(Layout(micro_batch=64))
    assert found.phases["forward"][0] == pytest.approx(64 * 4 * 1e9 / 1e12)
    assert found.phases["backward"][0] == pytest.approx(2 * found.phases["forward"][0])
    assert found.phases["gradient exchange"][0] == found.phases["pipeline bubble"][0] == 0
    update = 4e6 * (4 + 4 + 2 * 8) / 1e12
    assert found.step_seconds[0] == pytest.approx(0.768 + update)
    assert found.price is not None
    assert found.price[0] == pytest.approx(found.step_seconds[0] * 3.6 / 3600)


def test_a_ring_in_a_node_by_hand() -> None:
    slow = replace(machine(), in_node=Level(bandwidth_bytes_per_second=1e7))
    found = predict(Layout(data=4, micro_batch=16), on=slow)
    ring = 2 * 3 / 4 * 16e6 / 1e7
    assert found.phases["gradient exchange"][0] == pytest.approx(
        ring
    )  # one bucket: nothing to hide it behind
    cut = WorkloadPredictor(workload(), slow, efficiency=replace(IDEAL, bucket_bytes=1e6))
    found = cut.predict(Layouts.of([Layout(data=4, micro_batch=16)]))
    assert found.phases["gradient exchange"][0] == pytest.approx(ring - found.phases["backward"][0])


def test_a_pipeline_waits_in_its_bubble() -> None:
    found = predict(Layout(pipeline=4, micro_batch=8))
    stage = 8 * 3e9 / 1e12  # of one micro-batch on one of the equal stages
    assert found.phases["pipeline bubble"][0] == pytest.approx(3 * stage)
    assert found.phases["forward"][0] + found.phases["backward"][0] == pytest.approx(8 * stage)


def test_recomputing_costs_a_forward_pass_and_saves_memory() -> None:
    big = replace(workload(16), activation_bytes_per_example=16 * 10**8)
    plain, again = (predict(Layout(micro_batch=4, recompute=how), work=big) for how in ("none", "full"))
    assert again.phases["recompute"][0] == pytest.approx(plain.phases["forward"][0])
    assert again.memory_bytes[0] < plain.memory_bytes[0]


def test_dividing_states_by_zero_levels() -> None:
    rows = [Layout(data=8, fsdp=8 if zero else 1, zero=zero, micro_batch=8) for zero in range(4)]
    memory = WorkloadPredictor(workload(), machine(), efficiency=IDEAL, context_bytes=0.0).memory(
        Layouts.of(rows)
    )
    kept = 4000 * 8
    assert memory == pytest.approx([4e6 * b + kept for b in (16, 9, 5.5, 2)])


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        (Layout(data=3), 1), (Layout(tensor=2), 2), (Layout(interleave=2, pipeline=2), 3),
        (Layout(recompute="selective"), 3), (Layout(pipeline=8), 4),
        (Layout(data=4, consistency="local_sgd"), 6),
    ],
)  # fmt: skip
def test_what_cannot_run_says_why(layout: Layout, reason: int) -> None:
    found = predict(layout)
    assert found.reasons[0] == reason
    assert math.isinf(found.step_seconds[0])


def test_what_does_not_fit_says_so() -> None:
    found = predict(Layout(micro_batch=64), work=replace(workload(), activation_bytes_per_example=10**9))
    assert WHY_NOT[found.reasons[0] - 1] == "does not fit in memory"


def test_without_operations_there_is_nothing_to_cost() -> None:
    with pytest.raises(InputError, match="no operations"):
        WorkloadPredictor(replace(workload(), operations=()), machine())


LAYOUT = st.builds(
    Layout,
    data=st.sampled_from([1, 2, 4]),
    pipeline=st.sampled_from([1, 2]),
    micro_batch=st.sampled_from([1, 2, 4, 8]),
    recompute=st.sampled_from(["none", "full"]),
    consistency=st.sampled_from(["bsp", "asp"]),
    placement=st.sampled_from(["tensor data pipeline", "pipeline data tensor"]),
)


@given(LAYOUT, st.floats(1e6, 1e12), st.floats(1.0, 100.0))
def test_more_bandwidth_is_never_slower(layout: Layout, bandwidth: float, times: float) -> None:
    slow, fast = (predict(layout, on=machine(bandwidth=rate)) for rate in (bandwidth, bandwidth * times))
    assert fast.step_seconds[0] <= slow.step_seconds[0] * (1 + 1e-12)


@given(LAYOUT)
def test_phases_add_up_and_endless_bandwidth_leaves_no_exchange(layout: Layout) -> None:
    endless = replace(machine(bandwidth=math.inf), in_node=Level(bandwidth_bytes_per_second=math.inf))
    found = predict(layout, on=endless)
    assert sum(seconds[0] for seconds in found.phases.values()) == pytest.approx(found.step_seconds[0])
    exchanges = [seconds[0] for name, seconds in found.phases.items() if "exchange" in name]
    assert np.allclose(exchanges, 0, atol=1e-12)


@given(st.sampled_from([1, 2, 4, 8]), st.sampled_from([1, 2, 4, 8]))
def test_more_replicas_never_need_more_memory_each(one: int, other: int) -> None:
    few, many = sorted((one, other))
    predictor = WorkloadPredictor(workload(), machine(), efficiency=IDEAL, context_bytes=0.0)
    rows = [
        Layout(data=data, fsdp=data, zero=3 if data > 1 else 0, micro_batch=64 // data)
        for data in (few, many)
    ]
    memory = predictor.memory(Layouts.of(rows))
    assert memory[1] <= memory[0]
