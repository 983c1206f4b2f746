"""A fleet's curves and lemons against fleets whose truth is known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from leptonai.core.errors import InputError
from leptonai.operations.predict.fleet import fit_weibull, fleet_of, unit_rates
from leptonai.operations.predict.history import history_from_columns


def test_the_weibull_intervals_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(1)
    mean = 100 * math.gamma(1 + 1 / 1.7)
    shape_held = mean_held = 0
    for _ in range(200):
        lives, watched = 100 * rng.weibull(1.7, 80), rng.uniform(40, 200, 80)
        found = fit_weibull(np.minimum(lives, watched), lives <= watched)
        shape_held += found.shape_low <= 1.7 <= found.shape_high
        mean_held += found.mean_low <= mean <= found.mean_high
    assert 180 <= shape_held <= 199
    assert 180 <= mean_held <= 199
    with pytest.raises(InputError, match="two failures"):
        fit_weibull(np.ones(3), np.zeros(3, dtype=bool))


def test_lemons_are_found_and_bad_luck_is_not_called_one() -> None:
    rng = np.random.default_rng(2)
    named = wrong = 0
    for _ in range(20):
        rate = np.full(100, 0.02)
        rate[:3] = 0.15
        exposure = rng.uniform(50, 200, 100)
        _, varies, units = unit_rates([str(at) for at in range(100)], rng.poisson(rate * exposure), exposure)
        lemons = {int(each.unit) for each in units if each.is_lemon}
        named += len(lemons & {0, 1, 2})
        wrong += len(lemons - {0, 1, 2})
        assert varies > 0.3
    assert named >= 36  # of 60; some were watched too short to be sure
    assert wrong <= 6  # of 1,940
    alike = rng.poisson(0.02 * np.full(200, 100.0))
    _, varies, units = unit_rates([str(at) for at in range(200)], alike, np.full(200, 100.0))
    assert varies < 0.35
    assert not any(each.is_lemon for each in units)


def test_lives_of_one_machine_count_together() -> None:
    names = ["a"] * 2 + ["a (life 2)"] * 2 + ["b"] * 2
    history = history_from_columns(
        names,
        np.array([0.0, 10, 10, 30, 0, 50]),
        {"heat": np.ones(6)},
        failed={"a": True, "a (life 2)": True},
    )
    found = fleet_of(history)
    assert [(each.unit, each.num_failures, each.exposure) for each in found.units] == [
        ("a", 2, 30.0),
        ("b", 0, 50.0),
    ]
    assert found.lives is not None
    assert found.lives.num_failures == 2
    still = history.only([history.units[-1]])
    assert fleet_of(still).lives is None
    with pytest.raises(InputError, match="watched for any time"):
        fleet_of(history.only([history.units[0].until(1)]))
