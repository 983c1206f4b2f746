"""The values a job is made of: shares of a batch, schedules, optimisers, and what a job refuses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.core.errors import InputError
from leptonai.training.data.dataset import Arrays, Data
from leptonai.training.job import Checkpoints, Evaluate, StopWhen, TrainJob
from leptonai.training.learner import Alone, shares
from leptonai.training.optimizers import SGD, Adagrad, Adam, AdamW, Lamb
from leptonai.training.schedules import Constant, Cosine, OneCycle, Steps

DATA = Data(Arrays(np.zeros((10, 2), np.float32), np.zeros(10, np.int64)))


def job(**changes: Any) -> TrainJob:
    return TrainJob(**{"model": lambda: None, "data": DATA, "epochs": 1, "global_batch_size": 4, **changes})


# -- shares --------------------------------------------------------------------------------------


@given(st.integers(0, 500), st.integers(1, 40))
def test_shares_cut_a_batch_without_gap_or_overlap_and_almost_evenly(
    num_examples: int, num_workers: int
) -> None:
    cuts = shares(num_examples, num_workers)
    assert len(cuts) == num_workers
    assert np.concatenate([np.arange(num_examples)[cut] for cut in cuts]).tolist() == list(
        range(num_examples)
    )
    sizes = [cut.stop - cut.start for cut in cuts]
    assert max(sizes) - min(sizes) <= 1
    assert sizes == sorted(sizes, reverse=True)


def test_alone_changes_nothing() -> None:
    values = np.array([1.0, 2.0])
    Alone().sum(values)
    Alone().broadcast(values)
    assert values.tolist() == [1.0, 2.0]
    assert (Alone().rank, Alone().num_workers) == (0, 1)


# -- schedules -----------------------------------------------------------------------------------

totals = st.integers(1, 1000)
fractions = st.floats(0.0, 1.0)


@given(totals, fractions, fractions, fractions, st.data())
def test_one_cycle_stays_between_its_ends_and_one(
    total: int, warmup: float, start: float, end: float, data: st.DataObject
) -> None:
    factor = OneCycle(warmup=warmup, start=start, end=end)(data.draw(st.integers(0, total)), total)
    assert min(start, end) - 1e-9 <= factor <= 1 + 1e-9


@given(st.integers(2, 1000), fractions, st.data())
def test_one_cycle_rises_then_falls_over_the_steps_taken(
    total: int, warmup: float, data: st.DataObject
) -> None:
    schedule = OneCycle(warmup=warmup)
    step = data.draw(st.integers(0, total - 2))
    change = schedule(step + 1, total) - schedule(step, total)
    if step + 1 <= warmup * total:
        assert change > 0
    elif step >= warmup * total:
        assert change < 0


def test_one_cycle_begins_peaks_and_ends_where_it_says() -> None:
    schedule = OneCycle(warmup=0.25, start=0.1, end=0.02)
    assert [schedule(step, 100) for step in (0, 25, 100)] == pytest.approx([0.1, 1.0, 0.02])


def test_cosine_warms_up_in_steps_then_follows_half_a_wave() -> None:
    schedule = Cosine(warmup_steps=4, end=0.1)
    assert [schedule(step, 104) for step in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert [schedule(step, 104) for step in (4, 54, 104)] == pytest.approx([1.0, 0.55, 0.1])


@given(totals, st.integers(0, 50), fractions, st.data())
def test_cosine_never_rises_after_the_warm_up(
    total: int, warmup: int, end: float, data: st.DataObject
) -> None:
    schedule = Cosine(warmup_steps=warmup, end=end)
    step = data.draw(st.integers(warmup, warmup + total))
    assert end - 1e-9 <= schedule(step + 1, total) <= schedule(step, total) + 1e-9 <= 1 + 2e-9


def test_steps_multiply_at_their_places() -> None:
    schedule = Steps(at=(0.5, 0.75), gamma=0.1)
    assert [schedule(step, 100) for step in (0, 49, 50, 74, 75, 99)] == pytest.approx(
        [1.0, 1.0, 0.1, 0.1, 0.01, 0.01]
    )


def test_constant_is_one() -> None:
    assert {Constant()(step, 10) for step in range(10)} == {1.0}


@pytest.mark.parametrize("warmup", [-0.1, 1.1, math.nan])
def test_a_warm_up_outside_the_run_is_refused(warmup: float) -> None:
    with pytest.raises(InputError, match="0 <= warmup <= 1"):
        OneCycle(warmup=warmup)


# -- optimisers ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SGD(lr=0.0), "lr > 0"),
        (lambda: Adam(lr=math.inf), "lr > 0"),
        (lambda: AdamW(lr=math.nan), "lr > 0"),
        (lambda: SGD(lr=0.1, momentum=1.0), "momentum < 1"),
        (lambda: SGD(lr=0.1, nesterov=True), "nesterov needs momentum"),
        (lambda: SGD(lr=0.1, weight_decay=-1.0), "weight_decay >= 0"),
        (lambda: AdamW(weight_decay=math.inf), "weight_decay >= 0"),
        (lambda: Adam(betas=(0.9, 1.0)), "two betas"),
        (lambda: AdamW(betas=(0.9,)), "two betas"),  # type: ignore[arg-type]
        (lambda: Adagrad(eps=0.0), "eps > 0"),
        (lambda: Adagrad(initial_accumulator=-1.0), "initial_accumulator >= 0"),
        (lambda: Lamb(weight_decay=-1.0), "weight_decay >= 0"),
        (lambda: Lamb(betas=(0.9, 1.0)), "two betas"),
    ],
)
def test_optimisers_refuse_settings_out_of_range(make: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


# -- the job -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": None}, "model must be a function"),
        ({"data": np.zeros(3)}, "data must be a Data value"),
        ({"epochs": None}, "exactly one of epochs and steps"),
        ({"steps": 3}, "exactly one of epochs and steps"),
        ({"epochs": 0}, "epochs > 0"),
        ({"epochs": math.inf}, "epochs > 0"),
        ({"epochs": None, "steps": 0}, "steps to be a whole number >= 1"),
        ({"global_batch_size": 0}, "global_batch_size to be a whole number >= 1"),
        ({"global_batch_size": 2.0}, "global_batch_size to be a whole number"),
        ({"accumulate": 0}, "accumulate"),
        ({"seed": -1}, "seed"),
        ({"clip_norm": 0.0}, "clip_norm > 0"),
        ({"loss": "crossentropy"}, "unknown loss 'crossentropy'"),
        ({"loss": "mse", "step": lambda model, batch: 0.0}, "loss or step, not both"),
        ({"precision": "float16"}, "unknown precision 'float16'"),
    ],
)
def test_a_job_refuses_what_it_cannot_mean(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        job(**changes)


@given(st.integers(1, 300), st.integers(1, 64), st.integers(1, 5))
def test_whole_epochs_take_as_many_steps_as_batches_are_needed(
    num_examples: int, batch_size: int, epochs: int
) -> None:
    asked = job(epochs=epochs, global_batch_size=batch_size)
    per_epoch = asked.steps_per_epoch(num_examples)
    assert (per_epoch - 1) * batch_size < num_examples <= per_epoch * batch_size
    assert asked.total_steps(num_examples) == epochs * per_epoch


def test_part_of_an_epoch_takes_at_least_a_step() -> None:
    assert job(epochs=0.5, global_batch_size=1).total_steps(10) == 5
    assert job(epochs=0.001).total_steps(10) == 1
    assert job(epochs=None, steps=7).total_steps(10) == 7


def test_data_may_be_a_function_but_must_give_data() -> None:
    assert job(data=lambda: DATA).load_data() is DATA
    with pytest.raises(InputError, match="data\\(\\) returned list"):
        job(data=lambda: [1]).load_data()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Evaluate(batch_size=0), "batch_size >= 1"),
        (lambda: Evaluate(every_epochs=-1), "every_epochs >= 0"),
        (lambda: Evaluate(metrics=("acuracy",)), "unknown metric 'acuracy'"),
        (lambda: Checkpoints(keep=0), "keep >= 1"),
        (lambda: Checkpoints(every_seconds=-1.0), "every_seconds >= 0"),
    ],
)
def test_evaluation_and_checkpoint_rules_refuse_settings_out_of_range(
    make: Callable[[], object], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_stopping_follows_its_metric_upward_or_downward() -> None:
    upward, downward = StopWhen(metric="accuracy", value=0.9), StopWhen(metric="loss", value=0.1, below=True)
    assert upward.reached({"accuracy": 0.9})
    assert not upward.reached({"accuracy": 0.89})
    assert not upward.reached({})
    assert downward.reached({"loss": 0.1})
    assert not downward.reached({"loss": 0.11})
    assert not downward.reached({"loss": math.nan})
