"""Forecasts against measurements."""

from __future__ import annotations

import pytest

from leptonai.compute.forecast import GROUPS, Forecast, PhaseForecast, check
from leptonai.compute.prediction.outcome import PHASES
from leptonai.core.errors import InputError
from leptonai.core.values import value_from_json
from leptonai.training.stopwatch import STEP_PHASES

MADE = Forecast(
    step_seconds=1.0,
    low_seconds=0.5,
    high_seconds=2.0,
    phases=(
        PhaseForecast(name="input", seconds=0.1),
        PhaseForecast(name="forward", seconds=0.3, source="curves"),
        PhaseForecast(name="backward", seconds=0.4),
        PhaseForecast(name="gradient exchange", seconds=0.2),
    ),
)


def test_every_predicted_phase_is_in_one_group_and_every_measured_one_is_a_group() -> None:
    covered = [name for names in GROUPS.values() for name in names]
    assert sorted(covered) == sorted(PHASES)
    assert set(STEP_PHASES) <= set(GROUPS)


def test_groups_and_json() -> None:
    assert MADE.groups() == pytest.approx({"input": 0.1, "compute": 0.7, "exchange": 0.2})
    assert value_from_json(Forecast, MADE.to_json()) == MADE


def test_rows_of_a_check() -> None:
    rows = check(MADE, {"input": 0.2, "compute": 0.7, "update": 0.05}, 1.1)
    assert [row.name for row in rows] == ["input", "compute", "exchange", "update", "other", "step"]
    assert [row.ratio for row in rows] == [
        pytest.approx(2.0),
        pytest.approx(1.0),
        None,
        None,
        None,
        pytest.approx(1.1),
    ]
    assert rows[4].measured_seconds == pytest.approx(0.15)


def test_what_was_not_measured_is_not_made_up() -> None:
    rows = check(MADE, {}, 1.1)
    assert [(row.name, row.measured_seconds) for row in rows] == [
        ("input", None), ("compute", None), ("exchange", None), ("step", 1.1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "ends", [(0.0, 1.0, 2.0), (1.5, 1.0, 2.0), (0.5, 3.0, 2.0), (0.5, 1.0, float("inf"))]
)
def test_an_interval_holds_its_step(ends: tuple[float, float, float]) -> None:
    with pytest.raises(InputError, match="low <= step <= high"):
        Forecast(low_seconds=ends[0], step_seconds=ends[1], high_seconds=ends[2])
