"""Timing by a clock that the timed calls move themselves."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from leptonai.compute.steady_timing import quiet_seconds, spread_of, time_until_steady


class Work:
    """Calls that take the given seconds, one after the other, by a clock of their own."""

    def __init__(self, seconds: Iterator[float]) -> None:
        self._seconds = seconds
        self.now_seconds = 0.0
        self.num_calls = 0

    def __call__(self) -> None:
        self.num_calls += 1
        self.now_seconds += next(self._seconds)

    def now(self) -> float:
        return self.now_seconds


def test_a_steady_call_ends_early() -> None:
    work = Work(itertools.repeat(0.01))
    found = time_until_steady(work, max_seconds=1.0, now=work.now)
    assert found.seconds == pytest.approx(0.01)
    assert found.spread == pytest.approx(0.0, abs=1e-9)
    assert work.now_seconds < 0.3  # one window of four, and the warm-up


def test_a_noisy_call_takes_the_time_it_is_given() -> None:
    work = Work(itertools.cycle([0.01, 0.02, 0.03]))
    found = time_until_steady(work, max_seconds=1.0, now=work.now)
    assert found.seconds == pytest.approx(0.01)
    assert found.spread > 0.4
    assert 0.9 < work.now_seconds < 1.2


def test_the_first_call_does_not_count() -> None:
    work = Work(itertools.chain([0.9], itertools.repeat(0.01)))
    assert time_until_steady(work, max_seconds=1.0, now=work.now).seconds == pytest.approx(0.01)


def test_a_call_longer_than_its_time_is_made_twice() -> None:
    work = Work(itertools.repeat(5.0))
    found = time_until_steady(work, max_seconds=1.0, now=work.now)
    assert (found.seconds, found.num_calls, work.num_calls) == (5.0, 1, 2)


def test_short_calls_are_timed_in_groups() -> None:
    work = Work(itertools.repeat(1e-6))
    found = time_until_steady(work, max_seconds=0.01, now=work.now)
    assert found.seconds == pytest.approx(1e-6)
    assert found.num_calls % 200 in (0, 199)  # 0.2 ms of them at a time


def test_it_goes_on_until_others_have_enough() -> None:
    asked: list[bool] = []

    def agree(mine: bool) -> bool:
        asked.append(mine)
        return len(asked) == 4

    work = Work(itertools.repeat(0.01))
    time_until_steady(work, max_seconds=1.0, agree=agree, now=work.now)
    assert asked == [False, True, True, True]  # the first question begins the window


def test_spread_is_relative() -> None:
    assert spread_of([1.0]) == 0.0
    assert spread_of([1.0, 2.0, 3.0, 4.0, 5.0]) == pytest.approx(2 / 3)
    assert spread_of([10.0, 20.0, 30.0, 40.0, 50.0]) == pytest.approx(2 / 3)


def test_what_neighbours_add_to_half_of_the_calls_does_not_count() -> None:
    work = Work(itertools.cycle([0.01, 0.014, 0.01, 0.05]))
    assert time_until_steady(work, max_seconds=1.0, now=work.now).seconds == pytest.approx(0.01)
    assert quiet_seconds([3.0]) == 3.0
