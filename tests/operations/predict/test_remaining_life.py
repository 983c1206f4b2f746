"""Remaining life on made-up wear: close, honest about its interval, causal, and clear about what moved it."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from leptonai.core.errors import InputError
from leptonai.operations.predict.features import fit_features
from leptonai.operations.predict.history import History, history_from_columns
from leptonai.operations.predict.life_fit import fit_remaining_life
from leptonai.operations.predict.remaining_life import LifeModel, NotEnough, Outlook


def worn(num_units: int, *, seed: int, cut: bool = False) -> tuple[History, list[float]]:
    """Units whose heat rises ever faster towards failure, beside a signal that means nothing; and what is left."""
    rng = np.random.default_rng(seed)
    names, times, heat, noise, left = [], [], [], [], []
    for number in range(num_units):
        life = int(rng.integers(120, 220))
        last = life if not cut else int(rng.integers(60, life - 1))
        at = np.arange(last, dtype=float)
        wear = (at / life) ** 3
        names += [f"u{number}"] * last
        times.append(at)
        heat.append(10 * wear + rng.normal(0, 0.3, last))
        noise.append(rng.normal(size=last))
        left.append(float(life - last))
    columns = {"heat": np.concatenate(heat), "noise": np.concatenate(noise)}
    failed = {} if cut else {f"u{number}": True for number in range(num_units)}
    return history_from_columns(names, np.concatenate(times), columns, failed=failed), left


@cache
def model() -> LifeModel:
    return fit_remaining_life(worn(40, seed=1)[0], seed=0, num_threads=1)[0]


def test_it_is_close_and_its_interval_holds_what_it_says() -> None:
    history, left = worn(60, seed=2, cut=True)
    found = model().predict(history)
    outlooks = [each for each in found if isinstance(each, Outlook)]
    assert len(outlooks) == 60
    guess = np.array([each.remaining for each in outlooks])
    error = np.sqrt(np.mean((guess - np.array(left)) ** 2))
    constant = np.std(left)
    assert error < 0.8 * constant
    held = np.mean([each.low <= true <= each.high for each, true in zip(outlooks, left, strict=True)])
    assert 0.75 <= held <= 1.0
    assert all(0 <= each.low <= each.remaining <= each.high for each in outlooks)


def test_the_signal_that_matters_is_named_first() -> None:
    history, _ = worn(30, seed=3, cut=True)
    first = [each.reasons[0].signal for each in model().predict(history) if isinstance(each, Outlook)]
    assert first.count("heat") > 0.8 * len(first)


def test_features_never_look_ahead() -> None:
    history, _ = worn(10, seed=4)
    features = fit_features(history, seed=0)
    unit = history.units[0]
    whole = features.of_unit(unit)
    for size in (1, features.num_needed, unit.num_samples - 1):
        np.testing.assert_array_equal(features.of_unit(unit.until(size)), whole[:size])


def test_a_short_history_is_told() -> None:
    history, _ = worn(1, seed=5)
    short = history.only([history.units[0].until(2)])
    (found,) = model().predict(short)
    assert isinstance(found, NotEnough)
    assert found.num_samples == 2 < found.num_needed


def test_what_cannot_be_fitted_or_read_is_refused() -> None:
    with pytest.raises(InputError, match="units of the history failed"):
        fit_remaining_life(worn(3, seed=6)[0])
    other = history_from_columns(["a"], np.zeros(1), {"cold": np.zeros(1)})
    with pytest.raises(InputError):
        model().predict(other)
    for rows in ({"heat": np.array([1.0, np.inf])}, {"heat": np.array([1.0])}):
        with pytest.raises(InputError):
            history_from_columns(["a", "a"], np.array([0.0, 1.0]), rows)
    with pytest.raises(InputError, match="increase from sample to sample"):
        history_from_columns(["a", "a"], np.array([1.0, 1.0]), {"heat": np.zeros(2)})
