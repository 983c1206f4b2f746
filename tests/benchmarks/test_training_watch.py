"""What the watch of runs is measured by: traces, spikes and machines are what the page says of them."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from benchmarks.harness import Results
from benchmarks.progress import Progress, Run
from benchmarks.training_watch import FIGURES, OURS, SPIKES
from benchmarks.training_watch_curves import (
    FIRST_STEP,
    LOCAL_STEPS,
    PEAK_OF_LOSS,
    Spike,
    alarms,
    draw_spikes,
    injected,
    is_found,
)
from benchmarks.training_watch_machines import NUM_STEPS, SIGNALS, judge, window
from benchmarks.training_watch_record_steps import load
from benchmarks.training_watch_runs import CLEAN_STEPS, NUM_STRAGGLERS, RECORDING
from benchmarks.training_watch_stragglers import LEAD_STEPS, exchange_with_wait, flags, is_named

from benchmarks import figures


def curve(steps: int = 6_000) -> np.ndarray:
    random = np.random.default_rng(1)
    return (0.5 + 5.0 / (1.0 + 0.05 * np.arange(steps))) * np.exp(random.normal(0.0, 0.1, steps))


def test_spikes_are_apart_and_as_large_as_said() -> None:
    losses = curve()
    drawn = draw_spikes(losses, count=9, random=np.random.default_rng(2))
    assert len(drawn) == 9
    for spike in drawn:
        before = losses[spike.step - LOCAL_STEPS : spike.step]
        assert spike.step >= FIRST_STEP
        assert spike.peak >= PEAK_OF_LOSS[0] * before.mean()
        raised = injected(losses, spike) - losses[: len(injected(losses, spike))]
        assert not raised[: spike.step].any()
        assert math.isclose(raised[spike.step], spike.peak, rel_tol=1e-9)
    assert min(b.step - a.step for a, b in pairwise(drawn)) >= 300


def test_a_spike_of_nothing_is_not_found() -> None:
    losses = curve()
    assert list(alarms(losses)) == []
    assert not is_found(losses, Spike(step=2_000, peak=0.0, decay_steps=10.0))
    assert is_found(losses, Spike(step=2_000, peak=3.0, decay_steps=10.0))


def test_the_recording_is_long_enough_and_a_wait_is_for_the_last() -> None:
    recorded = load(RECORDING)
    assert recorded.compute_SR.shape[0] >= CLEAN_STEPS
    assert recorded.compute_SR.shape[1] == 8
    assert NUM_STRAGGLERS >= 100
    seen = exchange_with_wait(np.array([[1.0, 3.0]]), np.array([[0.5, 0.5]]))
    assert seen.tolist() == [[2.5, 0.5]]


def test_a_slow_rank_is_only_right_if_it_alone_is_named() -> None:
    random = np.random.default_rng(3)
    compute, own = random.lognormal(0.0, 0.02, (LEAD_STEPS + 50, 8)), np.full((LEAD_STEPS + 50, 8), 0.1)
    assert flags(compute, own) == 0
    assert is_named(compute, own, rank=2, begin=LEAD_STEPS)
    compute[LEAD_STEPS - 100 :, 5] *= 1.5
    assert not is_named(compute, own, rank=2, begin=LEAD_STEPS)


def test_windows_hold_what_they_say_and_names_of_others_cost_precision() -> None:
    random = np.random.default_rng(4)
    drawn = [window(random, num_machines=50) for _ in range(30)]
    assert {values.shape for values, _ in drawn} == {(50, len(SIGNALS), NUM_STEPS)}
    assert 12 <= sum(faulty is not None for _, faulty in drawn) <= 27
    found = judge(6, seed=5, num_machines=200)
    assert 0.0 <= found["f1"] <= 1.0
    assert found["seconds"] > 0.0


def test_figures_read_the_reports() -> None:
    numbers = {"spikes_found": 0.99, "spikes_false": 1.4}
    run = Run(
        contestant=OURS, started_at_seconds=0.0, ended_at_seconds=1.0, progress=Progress(numbers=numbers)
    )
    judged = {
        each.name: figures.judge(each, Results(runs={SPIKES: {OURS: [run]}}))
        for each in FIGURES
        if each.contest == SPIKES
    }
    assert judged["spikes_found"]["met"]
    assert not judged["spikes_false"]["met"]
