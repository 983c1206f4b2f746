"""Limits, monotony and bookkeeping of the transformer model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonai.compute.prediction.calibration import Calibration, calibration_for
from leptonai.compute.prediction.collectives import Groups
from leptonai.compute.prediction.exchange_times import Exchange
from leptonai.compute.prediction.explained import PHASE_SOURCES, explain
from leptonai.compute.prediction.layouts import CONSISTENCY, PLACEMENTS, RECOMPUTE, Layout, Layouts
from leptonai.compute.prediction.machine import Accelerator, Level, Machine
from leptonai.compute.prediction.outcome import PHASES
from leptonai.compute.prediction.transformer_step import WHY_NOT, TransformerPredictor
from leptonai.compute.transformer import Transformer
from leptonai.core.errors import InputError

DEVICE = Accelerator(
    name="A100-80GB", peak_flops=312e12, memory_bytes=80e9, memory_bandwidth_bytes_per_second=2.039e12,
    power_watts=400,
)  # fmt: skip
MODEL = Transformer(num_layers=16, hidden=2048, num_heads=16, sequence=1024, vocabulary=51200)
BATCH = 128
EXACT = Calibration(
    host_layer_seconds=0.0, host_micro_batch_seconds=0.0, host_stage_seconds=0.0, collective_skew_seconds=0.0,
    gradient_copy_bytes=0.0, update_bytes=0.0, update_seconds=0.0,
)  # fmt: skip
"""No host, no copies and no update: what is left is compute, exchange and bubble."""
EXCHANGES = ("tensor exchange", "pipeline exchange", "gradient exchange", "parameter exchange")


def machine(
    in_node: float = 300e9, between: float = 100e9, latency: float = 10e-6, nodes: int = 16
) -> Machine:
    return Machine(
        device=DEVICE, devices_per_node=8, num_nodes=nodes, price_per_device_hour=3.6,
        in_node=Level(bandwidth_bytes_per_second=in_node, latency_seconds=latency),
        between_nodes=Level(bandwidth_bytes_per_second=between, latency_seconds=latency),
    )  # fmt: skip


def predictor(on: Machine | None = None, **options: object) -> TransformerPredictor:
    return TransformerPredictor(MODEL, on or machine(), global_batch=BATCH, **options)  # type: ignore[arg-type]


@st.composite
def layouts(draw: st.DrawFn) -> Layout:
    data = 2 ** draw(st.integers(0, 3))
    pipeline = 2 ** draw(st.integers(0, 2))
    fsdp = draw(st.sampled_from([each for each in (1, 2, 4, 8) if data % each == 0]))
    return Layout(
        tensor=2 ** draw(st.integers(0, 4)), data=data, pipeline=pipeline, fsdp=fsdp,
        zero=0 if fsdp == 1 else draw(st.integers(1, 3)), micro_batch=2 ** draw(st.integers(0, 3)),
        interleave=draw(st.sampled_from([1, 2])) if pipeline > 1 else 1, recompute=draw(st.sampled_from(RECOMPUTE)),
        sequence_parallel=draw(st.booleans()), consistency=draw(st.sampled_from(CONSISTENCY)),
        placement=draw(st.sampled_from(PLACEMENTS)),
    )  # fmt: skip


@given(st.lists(layouts(), min_size=1, max_size=8))
@settings(max_examples=60, deadline=None)
def test_phases_add_up_and_everything_is_finite_and_in_order(rows: list[Layout]) -> None:
    found = predictor().predict(Layouts.of(rows))
    assert set(found.phases) <= set(PHASES)
    np.testing.assert_allclose(sum(found.phases.values()), found.step_seconds, rtol=1e-9)
    assert all((column >= 0).all() and np.isfinite(column).all() for column in found.phases.values())
    assert (found.low_seconds <= found.step_seconds).all()
    assert (found.step_seconds <= found.high_seconds).all()
    assert found.price is not None
    devices = np.array([row.num_devices for row in rows])
    np.testing.assert_allclose(found.price, found.step_seconds * devices * 3.6 / 3600)
    np.testing.assert_allclose(found.energy_joules, found.step_seconds * devices * DEVICE.power_watts)


@given(layouts(), st.floats(1.01, 100.0), st.sampled_from(["in_node", "between", "memory", "peak"]))
@settings(max_examples=150, deadline=None)
def test_a_faster_machine_is_never_slower(layout: Layout, factor: float, what: str) -> None:
    slow, fast = machine(), machine()
    if what in ("in_node", "between"):
        fast = machine(**{what: getattr(slow, {"in_node": "in_node", "between": "between_nodes"}[what])
                          .bandwidth_bytes_per_second * factor})  # fmt: skip
    else:
        field = {"memory": "memory_bandwidth_bytes_per_second", "peak": "peak_flops"}[what]
        fast = replace(slow, device=replace(DEVICE, **{field: getattr(DEVICE, field) * factor}))
    one = Layouts.of([layout])
    before, after = (predictor(each).predict(one).step_seconds[0] for each in (slow, fast))
    assert after <= before * (1 + 1e-9)


@given(layouts())
@settings(max_examples=60, deadline=None)
def test_infinite_links_and_no_host_leave_compute_and_bubble(layout: Layout) -> None:
    free = machine(in_node=float("inf"), between=float("inf"), latency=0.0)
    found = predictor(free, calibration=EXACT).predict(Layouts.of([layout]))
    for name in (*EXCHANGES, "update"):
        assert found.phases[name][0] == 0, name
    assert found.phases["host"][0] == pytest.approx(0.0, abs=1e-12)
    compute = sum(found.phases[name][0] for name in ("forward", "backward", "recompute"))
    assert found.step_seconds[0] == pytest.approx(compute + found.phases["pipeline bubble"][0])
    assert (found.phases["pipeline bubble"][0] > 0) == (layout.pipeline > 1)


@given(st.sampled_from(RECOMPUTE), st.integers(0, 4))
@settings(deadline=None)
def test_one_device_exchanges_nothing(recompute: str, power: int) -> None:
    found = predictor().predict(Layouts.of([Layout(micro_batch=2**power, recompute=recompute)]))
    assert all(found.phases[name][0] == 0 for name in (*EXCHANGES, "pipeline bubble"))


def test_compute_of_one_device_is_its_operations_over_its_rate() -> None:
    """All of 72 B s l h^2 (1 + s/6h + V/12lh) operations, with nothing else that takes time (2104.04473, appendix)."""
    device = replace(DEVICE, memory_bandwidth_bytes_per_second=1e30)
    only = replace(EXACT, matmul_efficiency=1.0, kernel_seconds=0.0)
    found = predictor(replace(machine(), device=device), calibration=only).predict(Layouts.of([Layout()]))
    s, h, layers, vocabulary = MODEL.sequence, MODEL.hidden, MODEL.num_layers, MODEL.vocabulary
    flops = 72 * BATCH * s * layers * h**2 * (1 + s / (6 * h) + vocabulary / (12 * layers * h))
    assert found.step_seconds[0] == pytest.approx(flops / device.peak_flops)


def test_an_all_reduce_over_two_nodes_by_hand() -> None:
    """Seven eighths there and back in the node and three doublings; half there and back between, for each group."""
    plain = replace(EXACT, collective_slowdown=1.0, in_node_efficiency=1.0, between_nodes_efficiency=1.0)
    groups = Groups(**{name: np.array([value], np.int32) for name, value in
                       {"degree": 16, "stride": 1, "nodes": 2, "in_node": 8, "sharing": 1}.items()})  # fmt: skip
    exchange = Exchange(machine=machine(), calibration=plain)
    in_node = 2 * 7 / 8 * 8e9 / 300e9 + 2 * 3 * 10e-6
    between = 2 * 1 / 2 * 8e9 / 100e9 + 2 * 10e-6
    assert exchange.all_reduce(groups, np.array([8e9]))[0] == pytest.approx(in_node + between)
    shared = replace(groups, sharing=np.array([4], np.int32))
    assert exchange.all_reduce(shared, np.array([8e9]))[0] == pytest.approx(
        in_node + between + 3 * 8e9 / 100e9
    )
    skewed = Exchange(machine=machine(), calibration=replace(plain, collective_skew_seconds=1.0))
    assert skewed.all_reduce(groups, np.array([8e9]))[0] == pytest.approx(in_node + between + 3.0)


def test_recomputation_repeats_two_of_six_tensor_exchanges() -> None:
    rows = [Layout(tensor=8, recompute=word, pipeline=2) for word in ("none", "full")]
    phases = predictor(calibration=EXACT).predict(Layouts.of(rows)).phases
    model = replace(MODEL, num_layers=2 * MODEL.num_layers)
    twice = TransformerPredictor(model, machine(), global_batch=BATCH, calibration=EXACT).predict(
        Layouts.of(rows)
    )
    layers = twice.phases["tensor exchange"] - phases["tensor exchange"]  # what the output adds cancels
    assert layers[1] == pytest.approx(1.5 * layers[0])


def test_full_recomputation_adds_a_forward_pass_and_selective_only_attention() -> None:
    rows = [Layout(data=8, micro_batch=4, recompute=word) for word in RECOMPUTE]
    again = predictor(calibration=EXACT).predict(Layouts.of(rows)).phases["recompute"]
    assert again[0] == 0 < again[1] < again[2]


def test_interleaving_divides_the_bubble_and_sends_more_messages() -> None:
    rows = [Layout(pipeline=4, micro_batch=1, interleave=pieces) for pieces in (1, 2)]
    phases = predictor(calibration=EXACT).predict(Layouts.of(rows)).phases
    assert phases["pipeline exchange"][1] == pytest.approx(2 * phases["pipeline exchange"][0])
    assert phases["pipeline bubble"][0] / 2 < phases["pipeline bubble"][1] < phases["pipeline bubble"][0]


def test_dividing_states_costs_traffic_and_saves_update_and_memory() -> None:
    rows = [Layout(data=8, fsdp=1 if zero == 0 else 8, zero=zero) for zero in range(4)]
    found = predictor().predict(Layouts.of(rows))
    assert (found.phases["update"][1:] < found.phases["update"][0]).all()
    assert (np.diff(found.memory_bytes) < 0).all()
    assert found.phases["parameter exchange"][0] == 0 < found.phases["parameter exchange"][1]


def test_divided_parameters_are_gathered_twice_for_each_micro_batch_and_gradients_once() -> None:
    """With nothing hidden and no latency: (P, 2P) of a step become (mP, 2mP); 1910.02054, section 7."""
    rows = [Layout(data=8, fsdp=8, zero=zero, micro_batch=4) for zero in (1, 2, 3)]
    bare = replace(EXACT, prefetch_overlap=0.0)
    phases = predictor(machine(latency=0.0), calibration=bare).predict(Layouts.of(rows)).phases
    count = BATCH / (8 * 4)
    once = phases["parameter exchange"][0]
    assert once > 0
    np.testing.assert_allclose(phases["parameter exchange"], [once, once, 2 * count * once])
    np.testing.assert_allclose(phases["gradient exchange"], [once, count * once, count * once])


def test_local_steps_divide_the_exchange_and_late_gradients_hide_it() -> None:
    rows = [Layout(data=64, micro_batch=1, consistency=name) for name in CONSISTENCY]
    exchange = predictor(local_steps=4).predict(Layouts.of(rows)).phases["gradient exchange"]
    bsp, ssp, asp, local = exchange
    assert local == pytest.approx(bsp / 4)
    assert ssp == asp < bsp


def test_variation_makes_bsp_wait_and_asp_not() -> None:
    rows = Layouts.of([Layout(data=16, consistency=name) for name in ("bsp", "ssp", "asp")])
    calm, varied = (predictor(step_variation=each).predict(rows).step_seconds for each in (0.0, 0.1))
    extra = varied / calm - 1
    assert extra[0] > extra[1] > extra[2] == 0


def test_each_reason_is_given() -> None:
    cases = {
        "does not fit in memory": Layout(micro_batch=128),
        "layers are not divisible by stages and their chunks": Layout(pipeline=3),
        "batch is not divisible by replicas and micro-batches": Layout(data=3),
        "heads are not divisible by tensor devices": Layout(tensor=3),
        "micro-batches are not divisible by stages, as interleaving needs": Layout(
            pipeline=8, interleave=2, micro_batch=64, recompute="full"
        ),
        "needs more devices than the machine has": Layout(tensor=16, data=16),
        "replicas are not divisible by the devices that divide states": Layout(data=4, fsdp=3, zero=1),
        "interleaving needs a pipeline": Layout(interleave=2),
    }
    assert set(cases) == set(WHY_NOT)
    found = predictor(replace(machine(), device=replace(DEVICE, memory_bytes=200e9))).predict(
        Layouts.of(list(cases.values()))
    )
    assert [found.why_not[place - 1] if place else "" for place in found.reasons] == list(cases)
    assert predictor().predict(Layouts.of([Layout(data=8)])).reasons[0] == 0


def test_a_long_column_gives_what_its_parts_give() -> None:
    rows = [
        Layout(tensor=2**t, data=2**d, micro_batch=2**b) for t in range(4) for d in range(4) for b in range(4)
    ]
    few = Layouts.of(rows)
    many = few.take(np.tile(np.arange(len(rows)), 1100))
    one, all_of_them = predictor().predict(few), predictor().predict(many)
    assert len(all_of_them) == len(rows) * 1100 > 2 * 32768
    for name in ("step_seconds", "memory_bytes", "price", "reasons"):
        np.testing.assert_allclose(getattr(all_of_them, name), np.tile(getattr(one, name), 1100), rtol=1e-12)
    np.testing.assert_array_equal(predictor().memory(many), all_of_them.memory_bytes)


def test_a_machine_without_price_gives_none() -> None:
    assert (
        predictor(replace(machine(), price_per_device_hour=None)).predict(Layouts.of([Layout()])).price
        is None
    )


def test_no_layouts_give_no_predictions() -> None:
    nothing = Layouts.of([Layout()]).take(slice(0, 0))
    assert len(predictor().predict(nothing)) == 0


def test_explanations_name_a_formula_for_each_phase_and_add_up() -> None:
    layout = Layout(tensor=2, data=4, pipeline=2, fsdp=4, zero=1, recompute="full", micro_batch=2)
    lines = explain(predictor(), layout)
    step = predictor().predict(Layouts.of([layout])).step_seconds[0]
    assert sum(line.seconds for line in lines) == pytest.approx(step)
    assert sum(line.share for line in lines) == pytest.approx(1.0)
    assert all(line.formula == PHASE_SOURCES[line.name] != "" for line in lines)
    assert {line.name for line in lines} >= {
        "forward",
        "tensor exchange",
        "pipeline bubble",
        "parameter exchange",
    }


@pytest.mark.parametrize(
    "wrong",
    [
        {"global_batch": 0},
        {"precision": "fp4"},
        {"staleness": -1},
        {"local_steps": 0},
        {"step_variation": -1.0},
    ],
)
def test_wrong_arguments_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError):
        TransformerPredictor(MODEL, machine(), **{"global_batch": 8, **wrong})  # type: ignore[arg-type]


def test_families_have_constants_and_others_the_priors() -> None:
    assert calibration_for("A100-80GB") != Calibration()
    assert calibration_for("NVIDIA H100 SXM").num_multiprocessors == 132
    assert calibration_for("TPU v5p") == Calibration()
    known = calibration_for("a100")
    assert known.low_ratio < 1 < known.high_ratio < Calibration().high_ratio


@pytest.mark.parametrize(
    "wrong",
    [{"matmul_efficiency": 0.0}, {"host_layer_seconds": -1.0}, {"host_sharpness": 0.5}, {"high_ratio": 0.9},
     {"logit_bytes": float("nan")}],
)  # fmt: skip
def test_a_calibration_out_of_range_is_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        Calibration(**wrong)
