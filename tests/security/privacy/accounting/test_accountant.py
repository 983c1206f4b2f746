"""Monotony, agreement of the methods, calibration, and the edges."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonai.core.errors import InputError
from leptonai.security.privacy.accounting.accountant import (
    Accountant,
    calibrate,
    delta,
    epsilon,
    true_positive_bound,
)
from leptonai.security.privacy.accounting.mechanisms import (
    Approximate,
    Charge,
    DiscreteGaussian,
    Gaussian,
    Laplace,
    SampledGaussian,
    TruncatedSampledGaussian,
)

FEW = settings(max_examples=15, deadline=None, derandomize=True)
rates = st.floats(min_value=-4, max_value=0).map(lambda power: 10.0**power)
noises = st.floats(min_value=0.6, max_value=20.0)
steps_ = st.integers(min_value=1, max_value=20_000)
deltas = st.floats(min_value=-12, max_value=-3).map(lambda power: 10.0**power)


def training(rate: float, noise: float, steps: int) -> list[Charge]:
    return [Charge(mechanism=SampledGaussian(noise_multiplier=noise, sample_rate=rate), count=steps)]


@FEW
@given(rates, noises, steps_, deltas)
def test_epsilon_moves_as_it_should(rate: float, noise: float, steps: int, at: float) -> None:
    found = epsilon(training(rate, noise, steps), delta=at)
    slack = 1 + 2e-3  # the grid changes with the setting
    assert epsilon(training(rate, noise * 1.1, steps), delta=at) <= found * slack
    assert epsilon(training(rate, noise, steps + steps // 5 + 1), delta=at) * slack >= found
    assert epsilon(training(min(1.0, rate * 1.2), noise, steps), delta=at) * slack >= found
    assert epsilon(training(rate, noise, steps), delta=at * 2) <= found * slack


@FEW
@given(rates, noises, steps_, deltas)
def test_both_methods_agree(rate: float, noise: float, steps: int, at: float) -> None:
    charges = training(rate, noise, steps)
    tight, loose = epsilon(charges, delta=at), epsilon(charges, delta=at, method="rdp")
    assert tight <= loose
    back = delta(charges, epsilon=loose, method="rdp")
    assert back == pytest.approx(at, rel=1e-3) or loose == 0


@FEW
@given(rates, noises, steps_, deltas)
def test_delta_is_the_inverse_of_epsilon(rate: float, noise: float, steps: int, at: float) -> None:
    charges = training(rate, noise, steps)
    found = epsilon(charges, delta=at)
    if found > 1e-3:
        assert delta(charges, epsilon=found) == pytest.approx(at, rel=3e-2)


def test_order_and_grouping_do_not_matter() -> None:
    a = Charge(mechanism=Laplace(noise_multiplier=5.0), count=3)
    b, c = training(0.01, 1.0, 500)[0], Charge(mechanism=Gaussian(noise_multiplier=9.0), count=4)
    halves = [Charge(mechanism=b.mechanism, count=250)] * 2
    assert epsilon([a, b, c], delta=1e-6) == epsilon([c, *halves, a], delta=1e-6)


def test_composition_costs_more_than_parts_and_less_than_their_sum() -> None:
    a, b = training(0.01, 1.0, 500), [Charge(mechanism=Laplace(noise_multiplier=5.0), count=3)]
    both = epsilon([*a, *b], delta=1e-6)
    assert max(epsilon(a, delta=1e-6), epsilon(b, delta=1e-6)) < both
    assert both < epsilon(a, delta=5e-7) + epsilon(b, delta=5e-7)


def test_a_nearly_full_sample_is_a_gaussian() -> None:
    exact = epsilon([Charge(mechanism=Gaussian(noise_multiplier=5.0), count=20)], delta=1e-6)
    assert epsilon(training(1 - 1e-12, 5.0, 20), delta=1e-6) == pytest.approx(exact, rel=1e-3)
    assert epsilon(training(1.0, 5.0, 20), delta=1e-6) == pytest.approx(exact, rel=1e-9)


# -- truncation ---------------------------------------------------------------------------------------


def truncated(max_batch: int) -> list[Charge]:
    mechanism = TruncatedSampledGaussian(
        noise_multiplier=1.5, sample_rate=0.01, population=10_000, max_batch=max_batch
    )
    return [Charge(mechanism=mechanism, count=1_000)]


def test_truncation_costs_more_the_more_it_cuts() -> None:
    found = [epsilon(truncated(max_batch), delta=1e-6) for max_batch in (90, 110, 130, 200, 20_000)]
    assert found == sorted(found, reverse=True)
    assert found[0] > 1.5 * found[-1]
    assert found[-1] == epsilon(training(0.01, 1.5, 1_000), delta=1e-6)
    assert found[-2] == pytest.approx(found[-1], rel=1e-3)
    assert found[0] <= epsilon(training(0.01, 0.75, 1_000), delta=1e-6) * 1.001
    assert epsilon(truncated(110), delta=1e-6) <= epsilon(truncated(110), delta=1e-6, method="rdp")


# -- discrete Gaussian --------------------------------------------------------------------------------


def test_discrete_gaussian_in_many_dimensions_falls_back_to_renyi() -> None:
    many = DiscreteGaussian(sigma=100.0, sensitivity=50.0, dimensions=1_000, sample_rate=0.02)
    like = SampledGaussian(noise_multiplier=2.0, sample_rate=0.02)
    found = epsilon([Charge(mechanism=many, count=300)], delta=1e-6)
    assert found == pytest.approx(
        epsilon([Charge(mechanism=like, count=300)], delta=1e-6, method="rdp"), rel=0.02
    )
    assert found >= epsilon([Charge(mechanism=like, count=300)], delta=1e-6)
    mixed = [Charge(mechanism=many, count=300), Charge(mechanism=Laplace(noise_multiplier=10.0))]
    assert found < epsilon(mixed, delta=1e-6) < found + 0.1


def test_integers_that_cannot_change_cost_nothing() -> None:
    assert epsilon([Charge(mechanism=DiscreteGaussian(sigma=1.0, sensitivity=0.5))], delta=0.0) == 0.0


# -- calibration --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "at"), [(0.3, 1e-7), (3.0, 1e-5), (30.0, 1e-5)])
def test_calibration_is_safe_and_tight(target: float, at: float) -> None:
    def charges_at(noise: float) -> Sequence[Charge]:
        return [*training(0.02, noise, 800), Charge(mechanism=Laplace(noise_multiplier=20.0))]

    noise = calibrate(charges_at, epsilon=target, delta=at)
    assert epsilon(charges_at(noise), delta=at) <= target
    assert epsilon(charges_at(noise / 1.001), delta=at) > target


def test_calibration_refuses_what_no_noise_can_keep() -> None:
    def charges_at(noise: float) -> Sequence[Charge]:
        return [*training(0.01, noise, 10), Charge(mechanism=Approximate(epsilon=2.0))]

    with pytest.raises(InputError, match="no noise"):
        calibrate(charges_at, epsilon=1.0, delta=1e-5)


@pytest.mark.parametrize("target", [0.0, -1.0, math.inf, math.nan])
def test_calibration_refuses_bad_targets(target: float) -> None:
    with pytest.raises(InputError, match="epsilon"):
        calibrate(lambda noise: training(0.01, noise, 10), epsilon=target, delta=1e-5)


# -- live ---------------------------------------------------------------------------------------------


def test_live_epsilon_is_quick_and_safe() -> None:
    fixed = [Charge(mechanism=Gaussian(noise_multiplier=20.0))]
    one_step = training(256 / 60_000, 1.1, 1)
    accountant = Accountant(one_step, fixed)
    accountant.epsilon(1, 1e-5)  # the losses of one step are made
    started = time.process_time()
    found = [accountant.epsilon(steps, 1e-5) for steps in range(100, 14_000, 700)]
    assert (time.process_time() - started) / len(found) < 0.15  # 0.02 s, with room for a busy machine
    assert found == sorted(found)
    exact = epsilon([*training(256 / 60_000, 1.1, 100), *fixed], delta=1e-5)
    assert exact * (1 - 1e-4) <= found[0] <= exact * (1 + 5e-3)
    assert accountant.epsilon(0, 1e-5) == epsilon(fixed, delta=1e-5)
    with pytest.raises(InputError, match="steps"):
        accountant.epsilon(-1, 1e-5)


# -- edges --------------------------------------------------------------------------------------------


def test_nothing_done_costs_nothing() -> None:
    assert epsilon([], delta=0.0) == 0.0
    assert epsilon(training(0.1, 1.0, 0), delta=1e-5) == 0.0
    assert delta(training(0.1, 1.0, 0), epsilon=0.0) == 0.0
    assert epsilon([Charge(mechanism=Approximate(epsilon=0.0))], delta=0.0) == 0.0


def test_delta_zero_is_kept_only_by_pure_mechanisms() -> None:
    pure = [
        Charge(mechanism=Laplace(noise_multiplier=4.0), count=3),
        Charge(mechanism=Approximate(epsilon=1.0)),
    ]
    assert epsilon(pure, delta=0.0) == pytest.approx(1.75)
    assert epsilon(pure, delta=1e-300) <= 1.75 * (1 + 1e-9)
    assert epsilon([*pure, *training(0.1, 1.0, 1)], delta=0.0) == math.inf
    assert delta(pure, epsilon=1.76) == 0.0


@pytest.mark.parametrize("value", [-1e-9, 1.0, math.nan])
def test_bad_delta_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="delta"):
        epsilon(training(0.1, 1.0, 1), delta=value)


@pytest.mark.parametrize("value", [-1e-9, math.nan])
def test_bad_epsilon_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="epsilon"):
        delta(training(0.1, 1.0, 1), epsilon=value)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_bad_rate_is_refused(value: float) -> None:
    with pytest.raises(InputError, match="rate"):
        true_positive_bound([], false_positive_rate=value)


@pytest.mark.parametrize(
    ("rate", "noise", "steps", "at"),
    [
        (1e-9, 1.0, 10, 1e-6),  # less likely to be seen at all than delta
        (1e-6, 0.6, 1_000_000, 1e-9),
        (1e-3, 1.0, 1_000_000, 1e-12),
        (0.5, 100.0, 1_000_000, 1e-12),
        (0.5, 0.1, 1, 1e-5),  # losses near the end of floats' exponentials
        (0.5, 0.01, 3, 1e-5),  # beyond it
        (1.0, 1e-3, 5, 1e-5),
        (0.01, 1e5, 1, 1e-5),
        (0.3, 2.0, 5, 0.9),
    ],
)
def test_extremes_have_an_answer_below_renyi(rate: float, noise: float, steps: int, at: float) -> None:
    charges = training(rate, noise, steps)
    found = epsilon(charges, delta=at)
    assert 0 <= found <= epsilon(charges, delta=at, method="rdp") < math.inf
    assert 0 <= delta(charges, epsilon=1.0) <= 1


def test_tiny_deltas_keep_their_accuracy() -> None:
    charges = training(0.01, 2.0, 1_000)
    for at in (1e-12, 1e-30, 1e-100):
        found = epsilon(charges, delta=at)
        assert found < epsilon(charges, delta=at, method="rdp") < 1.25 * found
