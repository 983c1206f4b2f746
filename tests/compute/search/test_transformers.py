"""Transformers: the space that follows from model and machine, and the plan that follows from both."""

from __future__ import annotations

from dataclasses import replace

import pytest

from leptonai.compute.prediction.layouts import Layouts
from leptonai.compute.prediction.machine import Accelerator, Level, Machine
from leptonai.compute.prediction.transformer_step import TransformerPredictor
from leptonai.compute.search.space import chunks
from leptonai.compute.search.transformers import plan_transformer, transformer_space
from leptonai.compute.transformer import Transformer
from leptonai.core.errors import InputError

A100 = Accelerator(
    name="A100-80GB", peak_flops=312e12, memory_bytes=80e9, memory_bandwidth_bytes_per_second=2.039e12,
    power_watts=400.0,
)  # fmt: skip
MACHINE = Machine(
    device=A100,
    devices_per_node=8,
    num_nodes=2,
    in_node=Level(bandwidth_bytes_per_second=300e9, latency_seconds=15e-6),
    between_nodes=Level(bandwidth_bytes_per_second=100e9, latency_seconds=20e-6),
    price_per_device_hour=4.0,
    currency="EUR",
)
MODEL = Transformer(num_layers=12, hidden=4096, num_heads=32, sequence=2048, vocabulary=51200)


def test_every_layout_of_the_space_can_run() -> None:
    predictor = TransformerPredictor(MODEL, MACHINE, global_batch=64)
    for fewer in (False, True):
        for layouts in chunks(transformer_space(MODEL, MACHINE, 64, fewer_devices=fewer)):
            predictions = predictor.predict(layouts)
            said = {predictions.why_not[reason - 1] for reason in set(predictions.reasons.tolist()) if reason}
            assert said <= {"does not fit in memory"}


def test_the_plan_is_what_the_predictor_says_of_its_layout() -> None:
    result = plan_transformer(MODEL, MACHINE, 64)
    predictor = TransformerPredictor(MODEL, MACHINE, global_batch=64)
    again = predictor.predict(Layouts.of([result.best.layout]))
    assert result.best.step_seconds == pytest.approx(float(again.step_seconds[0]), rel=1e-12)
    assert sum(phase.seconds for phase in result.best.phases) == pytest.approx(result.best.step_seconds)
    assert result.best.layout.num_devices == 16
    assert result.best.memory_bytes <= A100.memory_bytes
    assert result.num_refused == 0


def test_fewer_devices_are_cheaper_never_faster() -> None:
    space = transformer_space(MODEL, MACHINE, 64, fewer_devices=True)
    fastest = plan_transformer(MODEL, MACHINE, 64, space=space).best
    cheapest = plan_transformer(MODEL, MACHINE, 64, goal="price", space=space).best
    assert fastest.price is not None
    assert cheapest.price is not None
    assert cheapest.price < fastest.price
    assert cheapest.layout.num_devices < fastest.layout.num_devices == 16


def test_a_model_too_large_is_told_what_it_needs() -> None:
    small = replace(MACHINE, device=replace(A100, memory_bytes=2**30))
    with pytest.raises(InputError, match=r"needs [0-9.]+ GiB on each of 16 devices; devices have 1 GiB"):
        plan_transformer(MODEL, small, 64)


def test_a_price_asked_for_where_none_is_known_is_refused() -> None:
    with pytest.raises(InputError, match="no price"):
        plan_transformer(MODEL, replace(MACHINE, price_per_device_hour=None), 64, goal="price")
