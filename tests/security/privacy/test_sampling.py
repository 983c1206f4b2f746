"""Samples: independent, at the rate, secret, the same for all who know the key; orders: each unit once an epoch."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from leptonai.core.errors import InputError
from leptonai.security.privacy.sampling import FixedOrder, PoissonSampler, UserSampler, default_max_batch

KEY = bytes(range(32))
RATES = st.floats(2**-60, 1.0)
KEYS = st.binary(min_size=32, max_size=32)


# -- Poisson sampling ----------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    key=KEYS, num_units=st.integers(1, 3000), rate=RATES, step=st.integers(0, 2**48 - 1),
    max_batch=st.none() | st.integers(1, 50),
)  # fmt: skip
def test_a_sample_is_a_function_of_key_and_step_and_has_no_unit_twice(
    key: bytes, num_units: int, rate: float, step: int, max_batch: int | None
) -> None:
    def sampler(limit: int | None) -> PoissonSampler:
        return PoissonSampler(key, num_units=num_units, sample_rate=rate, max_batch=limit)

    units = sampler(max_batch).units(step)
    whole = sampler(None).units(step)
    assert units.dtype == np.int64
    assert len(set(units.tolist())) == units.size
    assert units.size == min(whole.size, max_batch or num_units)
    assert set(units.tolist()) <= set(whole.tolist()) <= set(range(num_units))
    np.testing.assert_array_equal(units, sampler(max_batch).units(step))


@settings(max_examples=30)
@given(key=KEYS, rates=st.tuples(RATES, RATES), step=st.integers(0, 100))
def test_a_higher_rate_only_adds_units(key: bytes, rates: tuple[float, float], step: int) -> None:
    low, high = (
        set(PoissonSampler(key, num_units=500, sample_rate=rate).units(step).tolist())
        for rate in sorted(rates)
    )
    assert low <= high


def test_rate_one_takes_everybody_and_a_tiny_rate_nobody() -> None:
    everybody = PoissonSampler(KEY, num_units=100, sample_rate=1.0).units(3)
    assert sorted(everybody.tolist()) == list(range(100))
    nobody = PoissonSampler(KEY, num_units=100, sample_rate=2.0**-64).units(3)
    assert nobody.size == 0
    assert nobody.dtype == np.int64


@pytest.mark.parametrize("rate", [0.003, 0.1, 0.5, 0.9])
def test_sizes_are_binomial_and_units_equally_likely(rate: float) -> None:
    num_units, steps = 400, 1500
    sampler = PoissonSampler(KEY, num_units=num_units, sample_rate=rate)
    taken = np.zeros((steps, num_units), dtype=bool)
    for step in range(steps):
        taken[step, sampler.units(step)] = True
    for counts, of in [(taken.sum(axis=1), num_units), (taken.sum(axis=0), steps)]:
        spread = counts.var(ddof=1) / (of * rate * (1 - rate))  # one, were they binomial and independent
        assert abs(spread - 1) < 4 * math.sqrt(2 / counts.size) + 0.02
    total, expected = int(taken.sum()), num_units * steps * rate
    assert abs(total - expected) < 4 * math.sqrt(expected * (1 - rate))
    # Neither two units nor a unit in two successive steps know of each other.
    both, again = (taken[:, :-1] & taken[:, 1:]).sum(), (taken[:-1] & taken[1:]).sum()
    for found, chances in [(both, steps * (num_units - 1)), (again, (steps - 1) * num_units)]:
        # Pairs share units: variance is that of runs, p^2 (1 - p^2) + 2 p^3 (1 - p) a pair
        variance = chances * (rate**2 * (1 - rate**2) + 2 * rate**3 * (1 - rate))
        assert abs(found - chances * rate**2) < 4 * math.sqrt(variance)


def test_the_order_is_fair() -> None:
    sampler = PoissonSampler(KEY, num_units=5, sample_rate=1.0)
    orders = np.array([sampler.units(step) for step in range(4000)])
    codes = orders @ 5 ** np.arange(5)
    _, counts = np.unique(codes, return_counts=True)
    assert counts.size == 120
    assert stats.chisquare(counts).pvalue > 0.001


@pytest.mark.parametrize(("num_units", "rate", "max_batch"), [(6, 1.0, 3), (8, 0.7, 3)])
def test_truncation_keeps_a_uniform_subset(num_units: int, rate: float, max_batch: int) -> None:
    sampler = PoissonSampler(KEY, num_units=num_units, sample_rate=rate, max_batch=max_batch)
    found = [tuple(sorted(sampler.units(step).tolist())) for step in range(4000)]
    full = [units for units in found if len(units) == max_batch]
    subsets, counts = np.unique(np.array(full), axis=0, return_counts=True)
    assert len(subsets) == math.comb(num_units, max_batch)
    assert stats.chisquare(counts).pvalue > 0.001
    chance = float(stats.binom.sf(max_batch - 1, num_units, rate))
    assert abs(len(full) - 4000 * chance) <= 4 * math.sqrt(4000 * chance * (1 - chance))


def test_steps_and_keys_give_different_samples() -> None:
    samples = [
        tuple(PoissonSampler(key, num_units=1000, sample_rate=0.5).units(step).tolist())
        for key in (KEY, bytes(32))
        for step in range(20)
    ]
    assert len(set(samples)) == len(samples)


@pytest.mark.parametrize(
    "wrong",
    [{"num_units": 0}, {"sample_rate": 0.0}, {"sample_rate": 1.1}, {"sample_rate": math.nan}, {"sample_rate": -1.0},
     {"sample_rate": 2.0**-65}, {"max_batch": 0}, {"key": b"short"}],
)  # fmt: skip
def test_values_outside_their_range_are_refused(wrong: dict[str, Any]) -> None:
    given_values: dict[str, Any] = {"key": KEY, "num_units": 10, "sample_rate": 0.5, **wrong}
    with pytest.raises(InputError):
        PoissonSampler(**given_values)


@pytest.mark.parametrize("step", [-1, 2**48])
def test_steps_outside_their_range_are_refused(step: int) -> None:
    with pytest.raises(InputError):
        PoissonSampler(KEY, num_units=10, sample_rate=0.5).units(step)


def test_no_key_is_shown() -> None:
    users = np.arange(10)
    for sampler in (
        PoissonSampler(KEY, num_units=10, sample_rate=0.5, max_batch=4),
        UserSampler(KEY, users_N=users, sample_rate=0.5, examples_per_user=2),
        FixedOrder(10, 2, key=KEY),
    ):
        shown = repr(sampler) + str(sampler)
        assert KEY.hex() not in shown
        assert repr(KEY)[2:-1] not in shown
        assert "key" not in shown
        assert type(sampler).__name__ in shown


# -- users ---------------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    key=KEYS, users=st.lists(st.integers(-3, 8), min_size=1, max_size=80), rate=st.floats(0.01, 1.0),
    cap=st.integers(1, 5), step=st.integers(0, 1000), max_batch=st.none() | st.integers(1, 4),
)  # fmt: skip
def test_chosen_users_give_as_many_examples_as_they_have_up_to_the_cap(
    key: bytes, users: list[int], rate: float, cap: int, step: int, max_batch: int | None
) -> None:
    users_N = np.array(users)
    sampler = UserSampler(key, users_N=users_N, sample_rate=rate, examples_per_user=cap, max_batch=max_batch)
    different = sorted(set(users))
    assert sampler.num_users == len(different)
    examples = sampler.examples(step)
    assert len(set(examples.tolist())) == examples.size
    chosen = [different[rank] for rank in sampler.users(step)]
    assert len(chosen) <= (max_batch or len(different))
    expected = [user for user in chosen for _ in range(min(cap, users.count(user)))]
    assert users_N[examples].tolist() == expected
    np.testing.assert_array_equal(examples, sampler.examples(step))


def test_a_users_examples_are_a_fair_subset() -> None:
    users_N = np.array([4, 1, 4, 4, 9, 4, 4])
    sampler = UserSampler(KEY, users_N=users_N, sample_rate=0.5, examples_per_user=2)
    found = [
        tuple(example for example in sampler.examples(step) if users_N[example] == 4) for step in range(4000)
    ]
    drawn, counts = np.unique(np.array([pair for pair in found if pair]), axis=0, return_counts=True)
    assert len(drawn) == 5 * 4
    assert stats.chisquare(counts).pvalue > 0.001


def test_users_are_sampled_whatever_their_number_of_examples() -> None:
    users_N = np.repeat([0, 1, 2], [1, 10, 100])
    sampler = UserSampler(KEY, users_N=users_N, sample_rate=0.3, examples_per_user=4)
    counts = np.zeros(3)
    num_examples = 0
    for step in range(2000):
        examples = sampler.examples(step)
        counts[np.unique(users_N[examples])] += 1
        num_examples += examples.size
    assert (np.abs(counts - 600) < 4 * math.sqrt(2000 * 0.3 * 0.7)).all()
    assert sampler.expected_examples(0.3) == pytest.approx(0.3 * 9)
    assert num_examples / 2000 == pytest.approx(sampler.expected_examples(0.3), rel=0.05)


@pytest.mark.parametrize(
    "wrong",
    [{"users_N": np.zeros((2, 2), dtype=int)}, {"users_N": np.array([], dtype=int)}, {"users_N": np.array([0.5])},
     {"examples_per_user": 0}, {"sample_rate": 2.0}, {"max_batch": 0}],
)  # fmt: skip
def test_wrong_users_are_refused(wrong: dict[str, Any]) -> None:
    given_values: dict[str, Any] = {
        "users_N": np.arange(3), "sample_rate": 0.5, "examples_per_user": 1, **wrong,
    }  # fmt: skip
    with pytest.raises(InputError):
        UserSampler(KEY, **given_values)


# -- batch limits --------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    num_units=st.integers(1, 10**6), rate=st.floats(1e-6, 1.0), failure=st.sampled_from([1e-3, 1e-6, 1e-12, 1e-30])
)  # fmt: skip
def test_the_default_limit_is_the_smallest_that_is_seldom_exceeded(
    num_units: int, rate: float, failure: float
) -> None:
    limit = default_max_batch(num_units, rate, failure)
    assert 1 <= limit <= num_units
    assert stats.binom.sf(limit, num_units, rate) <= failure
    assert limit == 1 or stats.binom.sf(limit - 1, num_units, rate) > failure
    assert default_max_batch(num_units, rate, failure / 1000) >= limit


@pytest.mark.parametrize(
    "wrong", [(0, 0.5, 0.1), (10, 0.0, 0.1), (10, 1.5, 0.1), (10, 0.5, 0.0), (10, 0.5, 1.0)]
)
def test_limits_of_nothing_are_refused(wrong: tuple[int, float, float]) -> None:
    with pytest.raises(InputError):
        default_max_batch(*wrong)


# -- fixed orders --------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(num_units=st.integers(1, 200), batch_size=st.integers(1, 250), key=st.none() | KEYS)
def test_each_epoch_has_each_unit_once_at_the_same_step(
    num_units: int, batch_size: int, key: bytes | None
) -> None:
    order = FixedOrder(num_units, batch_size, key=key)
    epoch = order.steps_per_epoch
    batches = [order.units(step) for step in range(2 * epoch)]
    assert sorted(np.concatenate(batches[:epoch]).tolist()) == list(range(num_units))
    for first, second in zip(batches[:epoch], batches[epoch:], strict=True):
        np.testing.assert_array_equal(first, second)
        assert 1 <= first.size <= batch_size
    steps = epoch + epoch // 2 + 1
    times = np.bincount(np.concatenate([order.units(step) for step in range(steps)]))
    assert times.max() == order.participations(steps)


def test_a_batch_may_be_changed_without_changing_the_order() -> None:
    order = FixedOrder(4, 2)
    order.units(0)[:] = 9
    assert order.units(0).tolist() == [0, 1]


def test_a_key_makes_an_order_of_its_own() -> None:
    orders = {tuple(FixedOrder(50, 50, key=key).units(0).tolist()) for key in (None, KEY, bytes(32))}
    assert len(orders) == 3


def test_orders_of_nothing_are_refused() -> None:
    for num_units, batch_size in [(0, 1), (1, 0)]:
        with pytest.raises(InputError):
            FixedOrder(num_units, batch_size)
    with pytest.raises(InputError):
        FixedOrder(2, 1).units(-1)
