"""What the watch of a run says begins once and ends once, whatever happens; healthy runs of real models say nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonai.core.events import (
    AlarmRaised,
    Event,
    Resized,
    Resumed,
    RunEnded,
    StepDone,
    WorkerLost,
)
from leptonai.operations.watch.finding import CurveFinding
from leptonai.operations.watch.pace import BLOCK_SECONDS, PaceWatch
from leptonai.operations.watch.training_watch import NUM_TIMES, TrainingWatch

NUM_RANKS = 4


def step_done(step: int, loss: float | None = 0.5, **more: object) -> StepDone:
    values: dict[str, object] = {
        "at_seconds": 0.5 * step, "step": step, "epoch": 1, "loss": loss, "examples": 64, "seconds": 0.5,
        "learning_rate": 0.1,
    }  # fmt: skip
    return StepDone(**{**values, **more})  # type: ignore[arg-type]


def told(watch: TrainingWatch, events: Iterable[Event]) -> list[AlarmRaised]:
    return [alarm for event in events for alarm in watch(event)]


def still_open(alarms: Iterable[AlarmRaised]) -> set[tuple[str, str]]:
    """What has begun and not ended; fails where something begins twice or ends without having begun."""
    begun: set[tuple[str, str]] = set()
    for each in alarms:
        key = (each.alarm, each.subject)
        assert (key in begun) == each.over, each
        begun ^= {key}
        assert not each.since_seconds > each.at_seconds
    return begun


def troubled(steps: range, random: np.random.Generator) -> Iterator[StepDone]:
    """Calm for two thirds; then everything is wrong at once."""
    for step in steps:
        bad = step - steps.start > 2 * len(steps) // 3
        compute = 0.1 * random.lognormal(0.0, 0.02, NUM_RANKS)
        compute[3] *= 1.5 if bad else 1.0
        noise = float(random.lognormal(0.0, 0.1))
        yield step_done(
            step, noise * (5.0 if bad else 1.0), gradient_norm=noise * (20.0 if bad else 1.0),
            seconds=0.5 * (1.5 if bad else 1.0), rank_compute_seconds=tuple(compute.tolist()),
            rank_exchange_seconds=(0.1,) * NUM_RANKS, phases={"input": 0.9 if bad else 0.1, "compute": 0.5},
        )  # fmt: skip


CURVES = {("loss_spike", "run"), ("divergence", "run"), ("gradient_explosion", "run")}


@pytest.mark.parametrize(
    ("change", "left"),
    [
        (Resumed(at_seconds=1_000.0, step=2_000, path="checkpoint"), set()),
        (WorkerLost(at_seconds=1_000.0, step=2_000, rank=3, reason="killed", pid=1), CURVES),
        (Resized(at_seconds=1_000.0, step=2_000, num_workers=NUM_RANKS), CURVES),
    ],
)
def test_a_change_ends_what_was_about_what_it_changed(change: Event, left: set[tuple[str, str]]) -> None:
    watch = TrainingWatch()
    random = np.random.default_rng(1)
    found = told(watch, troubled(range(1, 2_001), random))
    begun = still_open(found)
    assert begun >= CURVES | {("throughput", "run"), ("data_stall", "run"), ("straggler_compute", "rank 3")}
    found += watch(change)
    assert still_open(found) == left
    found += told(watch, troubled(range(2_001, 4_001), random))
    still_open(found)


def test_the_end_of_a_run_does_not_mend_it() -> None:
    watch = TrainingWatch()
    found = told(watch, troubled(range(1, 2_001), np.random.default_rng(2)))
    assert watch(RunEnded(at_seconds=1_001.0, status="done", step=2_000, seconds=1_001.0)) == ()
    assert still_open(found) >= CURVES


def test_it_says_when_it_began_and_not_when_it_was_noticed() -> None:
    random = np.random.default_rng(3)
    losses = random.lognormal(0.0, 0.2, 1_000)
    losses[700:] *= 1.7  # told by several steps together
    found = told(TrainingWatch(), (step_done(step, float(loss)) for step, loss in enumerate(losses)))
    assert found[0].alarm == "loss_spike"
    assert abs(found[0].since_seconds - 0.5 * 700) <= 0.5 * 10
    assert found[0].since_seconds < found[0].at_seconds


def test_a_loss_that_passes_zero_is_no_spike() -> None:
    random = np.random.default_rng(2)  # taken for a spike where losses below zero count as tiny
    losses = 2.0 - 3.0 * np.arange(6_000) / 3_000 + random.normal(0.0, 0.2, 6_000)
    watch = TrainingWatch()
    assert told(watch, (step_done(step, float(loss)) for step, loss in enumerate(losses))) == []
    assert [each.alarm for each in watch(step_done(6_001, -math.inf))] == ["not_finite"]


def test_a_clock_that_is_set_back_neither_blinds_the_watch_nor_fills_the_memory() -> None:
    watch = PaceWatch()
    found: list[CurveFinding] = []
    for second in range(400):
        found += watch.update(second, 0.1, {}, at_seconds=1e6 + second)
    for second in range(400, 1_200):
        found += watch.update(second, 0.1 if second < 800 else 0.15, {}, at_seconds=float(second))
        assert len(watch._open) <= BLOCK_SECONDS + 1
    assert [(each.kind, 780 <= each.since_step <= 830) for each in found] == [("throughput", True)]


ODD = st.one_of(
    st.sampled_from([math.nan, math.inf, -math.inf, 0.0, -1.0, 1e300, -1e300, 1e-320]), st.floats(0.1, 10.0)
)
SECONDS = st.one_of(st.sampled_from([math.nan, math.inf, 0.0, -1.0]), st.floats(1e-3, 1e3))
STEPS = st.builds(
    step_done, st.integers(-5, 10**9), st.none() | ODD, at_seconds=ODD, seconds=ODD, gradient_norm=st.none() | ODD,
    phases=st.dictionaries(st.sampled_from(["input", "compute", "x"]), ODD),
    rank_compute_seconds=st.lists(SECONDS, max_size=4).map(tuple),
    rank_exchange_seconds=st.lists(SECONDS, max_size=4).map(tuple),
)  # fmt: skip
CHANGES = st.sampled_from(
    [
        Resumed(at_seconds=3.0, step=3, path="x"),
        WorkerLost(at_seconds=3.0, step=3, rank=1, reason="", pid=1),
        RunEnded(at_seconds=3.0, status="done", step=3, seconds=3.0),
    ]
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(STEPS, STEPS, STEPS, CHANGES), max_size=120), st.integers(0, 2**32 - 1))
def test_odd_events_neither_raise_nor_begin_anything_twice(events: list[Event], seed: int) -> None:
    watch, random = TrainingWatch(), np.random.default_rng(seed)
    calm = [step_done(step, float(random.lognormal(0.0, 0.1))) for step in range(1, 100)]
    still_open(told(watch, [*calm, *events, *calm]))
    assert len(watch._times) <= NUM_TIMES


def trained(schedule: str, *, seed: int, steps: int = 4_000, batch: int = 32) -> Iterator[StepDone]:
    """Steps of a network of one hidden layer that learns what another says, by plain gradient descent."""
    random = np.random.default_rng(seed)
    teacher = random.normal(size=(16, 4))
    inputs_ND = random.normal(size=(8_000, 16))
    labels_N = (inputs_ND @ teacher + 0.5 * random.gumbel(size=(8_000, 4))).argmax(axis=1)
    first_DH, second_HC = random.normal(size=(16, 24)) / 4.0, random.normal(size=(24, 4)) / 5.0
    for step in range(1, steps + 1):
        rate = {
            "constant": 0.1, "drops": 0.2 * 0.1 ** (step // (steps // 3)), "warms up": 0.3 * min(1.0, step / 500),
            "cosine": 0.1 * (1.0 + math.cos(math.pi * step / steps)),
        }[schedule]  # fmt: skip
        at = random.integers(0, len(inputs_ND), batch)
        hidden_BH = np.maximum(inputs_ND[at] @ first_DH, 0.0)
        outputs_BC = hidden_BH @ second_HC
        chances_BC = np.exp(outputs_BC - outputs_BC.max(axis=1, keepdims=True))
        chances_BC /= chances_BC.sum(axis=1, keepdims=True)
        loss = float(-np.log(chances_BC[np.arange(batch), labels_N[at]]).mean())
        chances_BC[np.arange(batch), labels_N[at]] -= 1.0
        hidden_grads_BH = (chances_BC @ second_HC.T) * (hidden_BH > 0.0) / batch
        first_grads, second_grads = inputs_ND[at].T @ hidden_grads_BH, hidden_BH.T @ chances_BC / batch
        norm = math.sqrt(float((first_grads**2).sum() + (second_grads**2).sum()))
        first_DH -= rate * first_grads
        second_HC -= rate * second_grads
        yield step_done(step, loss, gradient_norm=norm)


@pytest.mark.parametrize("schedule", ["constant", "drops", "warms up", "cosine"])
def test_healthy_runs_of_a_real_network_say_nothing_that_calls_anybody(schedule: str) -> None:
    found = told(TrainingWatch(), trained(schedule, seed=5))
    assert [each for each in found if each.severity != "info"] == []


def test_a_poisoned_batch_in_a_real_run_is_told_with_its_end() -> None:
    events = list(trained("cosine", seed=6))
    events[2_500] = step_done(2_501, 6.0, gradient_norm=events[2_500].gradient_norm)
    found = [each for each in told(TrainingWatch(), events) if each.severity != "info" or each.over]
    assert [(each.alarm, each.over) for each in found][:1] == [("loss_spike", False)]
    assert found[0].at_seconds == 0.5 * 2_501
    assert ("loss_spike", "run") not in still_open(told(TrainingWatch(), events))
