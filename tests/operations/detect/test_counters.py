"""Counters as rates: resets, gaps, clocks."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.core.errors import InputError
from leptonai.operations.detect.counters import CounterRate, is_counter_name, looks_like_counter, rates


@given(st.lists(st.floats(0.0, 1e6), min_size=2, max_size=50))
def test_rates_sum_up_to_the_growth(steps: list[float]) -> None:
    total, values = 0.0, []
    for each in steps:
        total += each
        values.append(total)
    found = rates([10.0 * place for place in range(len(values))], values)
    assert math.isnan(found[0])
    assert sum(found[1:]) * 10.0 == pytest.approx(values[-1] - values[0], abs=1e-3)


def test_a_reset_counts_from_zero_and_is_counted() -> None:
    rate = CounterRate()
    found = [rate.update(v, at_seconds=10.0 * k) for k, v in enumerate([100.0, 200.0, 30.0, 60.0])]
    assert found[1:] == [10.0, 3.0, 3.0]
    assert rate.num_resets == 1


def test_gaps_nan_and_backward_clocks_give_no_rate() -> None:
    rate = CounterRate()
    fed = [(0, 0.0), (10, 10.0), (20, math.nan), (30, 30.0), (25, 31.0), (10_000, 40.0)]
    found = [rate.update(value, at_seconds=at) for at, value in fed]
    assert [math.isnan(each) for each in found] == [True, False, True, False, True, True]


def test_a_period_that_grows_for_good_is_learnt() -> None:
    rate = CounterRate()
    for k in range(20):
        rate.update(float(k), at_seconds=float(k))
    later = [rate.update(100.0 * k, at_seconds=1000.0 + 100.0 * k) for k in range(1, 20)]
    assert math.isnan(later[0])
    assert later[-1] == pytest.approx(1.0)


def test_what_is_a_counter() -> None:
    assert is_counter_name("a_bucket")
    assert not is_counter_name("a_ratio")
    assert looks_like_counter([*map(float, range(50)), *map(float, range(40))])
    assert not looks_like_counter([1.0] * 50)
    assert not looks_like_counter([float(k) for k in range(10)])
    assert not looks_like_counter([50.0 + math.sin(k) for k in range(100)])


def test_lengths_must_agree() -> None:
    with pytest.raises(InputError):
        rates([1.0], [])
