"""Chances of failure that hold on machines never seen, told apart from what is too new, and kept in a file."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from leptonai.core.errors import InputError
from leptonai.operations.predict.calibrated import reliability
from leptonai.operations.predict.forecast import Forecast, Held, Prospect, fit_forecast
from leptonai.operations.predict.hazard_fit import fit_hazard
from leptonai.operations.predict.history import History, history_from_columns
from leptonai.operations.predict.remaining_life import NotEnough
from leptonai.operations.predict.rows import fit_rows
from leptonai.operations.predict.survival import outcome_weights
from leptonai.operations.predict.tables import Columns, Recorded


def machines(num: int, *, seed: int) -> History:
    """Half of them fail; for a day or so before that, errors come ever more often. Hourly samples."""
    rng = np.random.default_rng(seed)
    names, times, errors, heat, failed = [], [], [], [], {}
    for number in range(num):
        size, fails, lead = int(rng.integers(150, 400)), bool(number % 2), int(rng.integers(12, 40))
        at = np.arange(size, dtype=float)
        ramp = np.clip((at - (size - lead)) / lead, 0, 1) if fails else np.zeros(size)
        names += [f"m{number}"] * size
        times.append(at)
        errors.append(rng.poisson(0.3 + 6 * ramp))
        heat.append(rng.normal(60, 3, size))
        failed[f"m{number}"] = fails
    columns = {"errors": np.concatenate(errors).astype(float), "heat": np.concatenate(heat)}
    return history_from_columns(names, np.concatenate(times), columns, failed=failed)


@cache
def fitted() -> tuple[Forecast, Held]:
    recorded = Recorded(history=machines(80, seed=1), dated=False)
    return fit_forecast(recorded, Columns(), horizons=("6h", "1d"), time_unit="h")


def test_chances_hold_on_machines_never_seen() -> None:
    model, history = fitted()[0], machines(60, seed=2)
    rng = np.random.default_rng(3)
    chances, hits = [], []
    for unit in history.units:
        for size in (
            rng.integers(40, unit.num_samples - 25, 4)
            if not unit.failed
            else rng.integers(unit.num_samples - 60, unit.num_samples, 4)
        ):
            (risk,) = model.hazard.predict(history.only([unit.until(int(size))]))
            assert not isinstance(risk, NotEnough)
            assert 0 < risk.chances[0] <= risk.chances[1] < 1
            chances.append(risk.chances[1])
            hits.append(unit.failed and unit.num_samples - int(size) <= 24)
    found = reliability(np.array(chances), np.array(hits), np.ones(len(hits)))
    assert found.brier < 0.5 * found.base_brier
    assert found.error < 0.1  # of 240 moments, half of them chosen near failures


def test_what_left_out_machines_said_is_told() -> None:
    _, held = fitted()
    assert (held.num_units, held.num_failures) == (80, 40)
    assert all(each.brier < each.base_brier and each.error < 0.02 for each in held.reliabilities)


def test_the_likeliest_failure_comes_first_with_its_signal_and_the_new_one_is_told() -> None:
    model, history = fitted()[0], machines(10, seed=4)
    nearly = [unit.until(unit.num_samples - 2) if unit.failed else unit for unit in history.units]
    found = model.score(history.only([*nearly[:9], nearly[9].until(3)]))
    prospects = [each for each in found if isinstance(each, Prospect)]
    assert {each.unit for each in prospects[:4]} == {"m1", "m3", "m5", "m7"}
    assert all(each.risk.reasons[0].signal == "errors" for each in prospects[:4])
    assert isinstance(found[-1], NotEnough)
    assert found[-1].unit == "m9"


def test_a_saved_forecast_says_the_same_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    model, history = fitted()[0], machines(6, seed=5)
    path = tmp_path / "model.safetensors"
    model.save(path)
    assert Forecast.load(path).score(history) == model.score(history)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="damaged"):
        Forecast.load(path)
    path.write_bytes(whole.replace(b'\\"horizon_words\\"', b'\\"horizon_wordz\\"'))
    with pytest.raises(InputError, match="damaged"):
        Forecast.load(path)
    with pytest.raises(InputError, match="no such file"):
        Forecast.load(tmp_path / "none.safetensors")


def test_what_cannot_be_fitted_is_refused() -> None:
    with pytest.raises(InputError, match="need at least 12"):
        fit_hazard(machines(6, seed=6), [24.0])
    with pytest.raises(InputError, match="positive and increase"):
        fit_hazard(machines(30, seed=6), [24.0, 1.0])
    recorded = Recorded(history=machines(30, seed=6), dated=False)
    with pytest.raises(InputError, match="unit is known"):
        fit_forecast(recorded, Columns(), horizons=("6h",), time_unit="cycles")


def test_outcomes_are_weighed_so_that_early_ends_bias_nothing() -> None:
    rng = np.random.default_rng(7)
    life, watched = rng.exponential(10, 40_000), rng.exponential(8, 40_000)
    left, failed = np.minimum(life, watched), life <= watched
    hit, weight = outcome_weights(left, failed, np.ones(len(left)), 5.0)
    assert abs(np.average(hit, weights=weight) - (1 - np.exp(-0.5))) < 0.01
    known = weight > 0
    assert abs(hit[known].mean() - (1 - np.exp(-0.5))) > 0.05  # unweighted it would be


def test_rows_get_chances_that_hold_and_name_the_columns() -> None:
    rng = np.random.default_rng(8)
    rows = rng.normal(size=(4000, 3))
    chance = 1 / (1 + np.exp(4 - 3 * rows[:, 0] * rows[:, 1]))
    failed = rng.random(4000) < chance
    model, held = fit_rows(rows[:3000], failed[:3000], ["torque", "speed", "noise"])
    assert held.error < 0.03
    found = model.chances(rows[3000:])
    assert reliability(found, failed[3000:], np.ones(1000)).error < 0.05
    assert np.corrcoef(found, chance[3000:])[0, 1] > 0.8
    worst = model.reasons(rows[3000:][np.argmax(found)])
    assert {each.signal for each in worst[:2]} == {"torque", "speed"}
    with pytest.raises(InputError, match="3 columns"):
        model.chances(rows[:, :2])
    with pytest.raises(InputError, match="at least 20"):
        fit_rows(rows[:50], np.zeros(50, dtype=bool), ["torque", "speed", "noise"])
