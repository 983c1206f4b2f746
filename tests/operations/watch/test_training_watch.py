"""The watch of a run: what must be told, once and with its end, and what must not."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest

from leptonai.core.events import (
    AlarmRaised,
    Evaluated,
    Event,
    Resized,
    RunEnded,
    RunStarted,
    StepDone,
    WorkerLost,
)
from leptonai.operations.watch.pace import PaceWatch
from leptonai.operations.watch.plateau import PlateauWatch
from leptonai.operations.watch.rise import LASTING_STEPS, RiseWatch
from leptonai.operations.watch.training_watch import TrainingWatch


def step_done(step: int, loss: float | None = 0.5, **more: object) -> StepDone:
    values: dict[str, object] = {
        "at_seconds": 0.1 * step, "step": step, "epoch": 1, "loss": loss, "examples": 64, "seconds": 0.1,
        "learning_rate": 0.1,
    }  # fmt: skip
    return StepDone(**{**values, **more})  # type: ignore[arg-type]


def told(watch: TrainingWatch, events: Iterable[Event]) -> list[AlarmRaised]:
    return [alarm for event in events for alarm in watch(event)]


def short(alarms: Iterable[AlarmRaised]) -> list[tuple[str, str, bool]]:
    return [(each.alarm, each.subject, each.over) for each in alarms]


def curve(steps: int, *, seed: int = 1, noise: float = 0.1) -> np.ndarray:
    random = np.random.default_rng(seed)
    return (0.5 + 5.0 / (1.0 + 0.05 * np.arange(steps))) * np.exp(random.normal(0.0, noise, steps))


@pytest.mark.parametrize("noise", [0.01, 0.1, 0.5])
def test_a_calm_run_is_silent_whatever_its_noise(noise: float) -> None:
    losses = curve(5_000, noise=noise)
    assert (
        told(TrainingWatch(), (step_done(step, float(loss)) for step, loss in enumerate(losses, start=1)))
        == []
    )


def test_a_loss_that_is_not_finite_is_told_at_once_and_once() -> None:
    losses = [0.5, 0.4, math.nan, math.inf, 0.4, math.nan]
    found = told(TrainingWatch(), (step_done(step, loss) for step, loss in enumerate(losses, start=1)))
    assert short(found) == [
        ("not_finite", "run", False),
        ("not_finite", "run", True),
        ("not_finite", "run", False),
    ]
    assert found[0].severity == "critical"
    assert "the loss is not finite at step 3" in found[0].message


def test_gradient_norms_and_metrics_are_held_to_it_too() -> None:
    watch = TrainingWatch()
    found = told(watch, [step_done(1, gradient_norm=math.inf)])
    assert "gradient norm" in found[0].message
    metrics = Evaluated(at_seconds=1.0, step=1, epoch=1, metrics={"loss": math.nan}, examples=10, seconds=1.0)
    assert "metric loss" in told(TrainingWatch(), [metrics])[0].message


def test_a_spike_that_passes_and_one_that_lasts() -> None:
    losses = curve(3_000)
    losses[1_000:1_010] *= 4.0
    losses[2_000:] *= 3.0
    found = told(TrainingWatch(), (step_done(step, float(loss)) for step, loss in enumerate(losses)))
    assert short(found) == [
        ("loss_spike", "run", False), ("loss_spike", "run", True), ("loss_spike", "run", False),
        ("divergence", "run", False),
    ]  # fmt: skip
    assert "step 1000" in found[0].message
    assert found[3].severity == "critical"
    assert f"{LASTING_STEPS} steps" in found[3].message


def test_many_small_rises_together_are_a_rise() -> None:
    losses = curve(2_000, noise=0.2)
    losses[1_500:] *= 1.6  # no single step is beyond the noise
    found = [
        each for step, loss in enumerate(losses) for each in RiseWatch("s", "it").update(step, float(loss))
    ]
    assert found == []
    watch = RiseWatch("s", "it")
    found = [each for step, loss in enumerate(losses) for each in watch.update(step, float(loss))]
    assert 1_490 <= found[0].since_step <= 1_520


def test_a_gradient_that_explodes_is_told_and_one_that_doubles_is_not() -> None:
    random = np.random.default_rng(3)
    norms = np.exp(random.normal(0.0, 0.2, 2_000))
    norms[1_000:1_003] *= 2.0
    norms[1_500] *= 50.0
    found = told(
        TrainingWatch(), (step_done(step, gradient_norm=float(norm)) for step, norm in enumerate(norms))
    )
    assert short(found)[:1] == [("gradient_explosion", "run", False)]
    assert "step 1500" in found[0].message


def test_a_slow_rank_is_named_and_a_change_of_workers_begins_anew() -> None:
    random, watch = np.random.default_rng(4), TrainingWatch()

    def events(steps: range, slow: float) -> Iterable[Event]:
        for step in steps:
            compute = random.lognormal(0.0, 0.02, 4)
            compute[2] *= slow
            exchange = compute.max() - compute + 0.1
            yield step_done(
                step, rank_compute_seconds=tuple(compute), rank_exchange_seconds=tuple(exchange.tolist())
            )

    assert told(watch, events(range(1, 300), 1.0)) == []
    found = told(watch, events(range(300, 400), 1.3))
    assert short(found) == [("straggler_compute", "rank 2", False)]
    assert "30 % longer" in found[0].message or "29 % longer" in found[0].message
    watch(Resized(at_seconds=40.0, step=400, num_workers=4))
    assert told(watch, events(range(401, 500), 1.0)) == []


def test_a_lasting_loss_of_throughput_is_told_and_a_pause_is_not() -> None:
    watch, found = PaceWatch(), []
    random = np.random.default_rng(5)
    for second in range(1_200):
        slow = 1.25 if second >= 800 else (5.0 if 300 <= second < 330 else 1.0)
        seconds = 0.1 * slow * float(random.lognormal(0.0, 0.05))
        found += watch.update(second, seconds, {}, at_seconds=float(second))
    assert [(each.kind, each.over, 780 <= each.since_step <= 830) for each in found] == [
        ("throughput", False, True)
    ]


def test_a_run_that_waits_for_data_is_told_so() -> None:
    watch, found = PaceWatch(), []
    for second in range(600):
        share = 0.7 if 200 <= second < 400 else 0.1
        phases = {"input": share, "compute": 1.0 - share}
        found += watch.update(second, 0.1, phases, at_seconds=float(second))
    assert [(each.kind, each.over) for each in found] == [("data_stall", False), ("data_stall", True)]


def test_a_plateau_is_information_and_a_falling_loss_is_none() -> None:
    falling, flat = PlateauWatch(), PlateauWatch()
    random = np.random.default_rng(6)
    found = []
    for step in range(12_000):
        noise = float(random.normal(0.0, 0.05))
        assert falling.update(step, 3.0 / (1.0 + 0.001 * step) + noise) == ()
        found += flat.update(step, 1.0 + 4.0 * math.exp(-step / 300) + noise)
    assert [(each.kind, each.severity) for each in found] == [("plateau", "info")]


def test_odd_events_change_nothing() -> None:
    watch = TrainingWatch()
    odd: list[Event] = [
        RunStarted(
            at_seconds=0.0, run_id="r", num_workers=2, total_steps=10, first_step=0, steps_per_epoch=5
        ),
        step_done(5, None), step_done(5, 0.0), step_done(4, -1.0, seconds=0.0), step_done(9, 1e300, seconds=-1.0),
        step_done(10, 1.0, rank_compute_seconds=(1.0,)), step_done(11, 1.0, rank_compute_seconds=(0.0, math.nan)),
        WorkerLost(at_seconds=1.0, rank=1, step=11, reason="killed", pid=1),
        RunEnded(at_seconds=2.0, status="done", step=11, seconds=2.0),
    ]  # fmt: skip
    assert told(watch, odd) == []
