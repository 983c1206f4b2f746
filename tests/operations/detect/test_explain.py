"""Alarms in words: since when, how it looked before, how now."""

from __future__ import annotations

import math

import numpy as np
import pytest

from leptonai.core.errors import InputError
from leptonai.operations.alarms import Subject
from leptonai.operations.detect.explain import Recent, explain, picture
from leptonai.operations.detect.policy import Verdict

PERIOD = 300.0


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e9])
@pytest.mark.parametrize("length", [1, 5, 40, 150])
def test_a_shift_is_dated(length: int, scale: float) -> None:
    rng = np.random.default_rng(length)
    values = rng.standard_normal(500)
    values[-length:] += 9.0
    seen = picture(PERIOD * np.arange(500), scale * (values + 100.0))
    assert abs(seen.since_seconds - PERIOD * (500 - length)) <= PERIOD
    assert seen.moves == "level"
    assert seen.before == pytest.approx(100.0 * scale, rel=0.01)
    assert seen.now > seen.high > seen.before > seen.low


def test_a_change_of_spread_is_told_from_one_of_level() -> None:
    values = np.random.default_rng(2).standard_normal(400)
    values[-60:] *= 6.0
    seen = picture(PERIOD * np.arange(400), values)
    assert seen.moves == "spread"
    assert abs(seen.since_seconds - PERIOD * 340) <= 10 * PERIOD


def test_the_hour_of_the_day_is_known_and_taken_out() -> None:
    at = PERIOD * np.arange(288 * 6)
    values = (
        50.0 + 30.0 * np.sin(2 * np.pi * at / 86_400.0) + np.random.default_rng(1).standard_normal(len(at))
    )
    values[-12:] += 15.0
    seen = picture(at, values)
    assert abs(seen.since_seconds - at[-12]) <= 2 * PERIOD
    assert seen.usual_now == pytest.approx(50.0, abs=5.0)
    assert seen.last > seen.usual_now + 8.0


def test_an_alarm_says_what_since_and_before() -> None:
    at, values = PERIOD * np.arange(300), [10.0, 11.0] * 140 + [30.0] * 20
    verdict = Verdict(
        phase="opened", at_seconds=float(at[-1]), since_seconds=float(at[-10]), strength=6.0, reason="level"
    )
    alarm = explain(verdict, at, values, series="queue{node=a}", unit="jobs", run_id="r1")
    assert alarm.subject == Subject("series", "queue{node=a}")
    assert alarm.since_seconds == at[280]
    assert alarm.evidence[0].p_value == pytest.approx(1e-6)
    assert "30 jobs now, 10.5 jobs before" in alarm.message
    assert "its level is unusual" in alarm.evidence[0].what
    assert not alarm.over


def test_the_end_of_an_alarm_closes() -> None:
    verdict = Verdict(phase="over", at_seconds=3000.0, since_seconds=900.0, strength=5.0)
    alarm = explain(verdict, PERIOD * np.arange(11), np.ones(11), series="s")
    assert alarm.over
    assert alarm.since_seconds == 900.0
    assert "as usual again" in alarm.message


def test_an_old_change_is_another_matter() -> None:
    values = np.random.default_rng(3).standard_normal(1000)
    values[200:] += 50.0
    values[-3:] += 8.0
    at = PERIOD * np.arange(1000)
    verdict = Verdict(phase="opened", at_seconds=float(at[-1]), since_seconds=float(at[-3]), strength=6.0)
    assert explain(verdict, at, values, series="s").since_seconds >= at[-104]


def test_little_and_broken_samples() -> None:
    assert picture([0.0], [5.0]).now == 5.0
    assert math.isnan(picture([0.0], [5.0]).before)
    assert picture([0.0, 1.0, 2.0], [math.nan, 4.0, math.inf]).last == 4.0
    for at, values in (([0.0], [math.nan]), ([0.0, 1.0], [1.0]), ([], [])):
        with pytest.raises(InputError):
            picture(at, values)
    with pytest.raises(InputError, match="quiet"):
        explain(Verdict(phase="quiet", at_seconds=0.0), [0.0], [1.0], series="s")


def test_what_is_kept_is_bounded() -> None:
    recent = Recent(capacity=10)
    for place in range(100):
        recent.add(float(place), at_seconds=float(place))
    at, values = recent.arrays()
    assert len(at) == len(values) == 10
    assert values[-1] == 99.0
