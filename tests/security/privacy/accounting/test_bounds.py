"""The account is an upper bound, held against what is known exactly, and a tight one."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import gammaln
from scipy.stats import norm

from leptonai.security.privacy.accounting.accountant import delta, epsilon, true_positive_bound
from leptonai.security.privacy.accounting.closed_forms import gaussian_delta, gaussian_epsilon
from leptonai.security.privacy.accounting.distributions import pld_delta, pld_epsilon
from leptonai.security.privacy.accounting.mechanisms import (
    Approximate,
    Charge,
    DiscreteGaussian,
    Gaussian,
    Laplace,
    SampledGaussian,
    TruncatedSampledGaussian,
)

ACCURACY = 5e-5
ROUNDING = 1e-9


def sampled_delta(rate: float, sigma: float, at: float) -> float:
    """Exact delta of one use: the larger hockey-stick divergence of N(0) and (1 - q) N(0) + q N(1)."""

    def edge(loss: float) -> float:  # the output whose loss this is
        return sigma**2 * math.log((math.expm1(loss) + rate) / rate) + 0.5

    x = edge(at)
    both = (1 - rate) * norm.sf(x / sigma) + rate * norm.sf((x - 1) / sigma)
    removed = both - math.exp(at) * norm.sf(x / sigma)
    if at >= -math.log1p(-rate):
        return float(removed)
    x = edge(-at)
    both = (1 - rate) * norm.cdf(x / sigma) + rate * norm.cdf((x - 1) / sigma)
    return float(max(removed, norm.cdf(x / sigma) - math.exp(at) * both))


@pytest.mark.parametrize(("rate", "sigma"), [(0.001, 0.7), (0.01, 1.0), (0.3, 2.0), (0.9, 0.8), (0.05, 10.0)])
@pytest.mark.parametrize("share", [0.05, 0.3, 0.7])
def test_one_sampled_use_against_its_exact_delta(rate: float, sigma: float, share: float) -> None:
    top = math.log(1 - rate + rate * math.exp((2 * (1 + 6 * sigma) - 1) / (2 * sigma**2)))
    exact = sampled_delta(rate, sigma, share * top)
    found = pld_delta(
        [Charge(mechanism=SampledGaussian(noise_multiplier=sigma, sample_rate=rate))],
        epsilon=share * top,
        accuracy=ACCURACY,
    )
    assert exact * (1 - ROUNDING) <= found <= exact * (1 + 5e-3)


@pytest.mark.parametrize("count", [1, 7, 400, 50_000])
@pytest.mark.parametrize("at", [1e-3, 1e-7, 1e-12, 1e-20])
def test_composed_gaussians_against_their_closed_form(count: int, at: float) -> None:
    """Composition on the grid, not the shortcut: Gaussians of the same total compose to one."""
    one = 3.0 * math.sqrt(count)
    exact = gaussian_epsilon(3.0, delta=at)
    found = pld_epsilon(
        [Charge(mechanism=Gaussian(noise_multiplier=one), count=count)], delta=at, accuracy=ACCURACY
    )
    assert exact * (1 - ROUNDING) <= found <= exact * (1 + 1e-3)


def test_gaussian_closed_form_against_the_normal_distribution() -> None:
    for sigma in (0.5, 1.0, 7.0):
        for at in (0.0, 0.3, 2.0):
            exact = norm.cdf(0.5 / sigma - at * sigma) - math.exp(at) * norm.cdf(-0.5 / sigma - at * sigma)
            assert gaussian_delta(sigma, epsilon=at) == pytest.approx(exact, rel=1e-6)


@pytest.mark.parametrize("scale", [0.5, 2.0, 30.0])
def test_one_laplace_use_against_its_closed_form(scale: float) -> None:
    for share in (0.2, 0.9):
        at = share / scale
        exact = -math.expm1((at - 1 / scale) / 2)
        found = delta([Charge(mechanism=Laplace(noise_multiplier=scale))], epsilon=at)
        assert exact * (1 - ROUNDING) <= found <= exact * (1 + 1e-3)


def test_randomised_responses_against_the_binomial_sum() -> None:
    """Kairouz, Oh & Viswanath 2015, Theorem 3.3, for k pure mechanisms: a sum over how many answers were kept."""
    one, count = 0.25, 30
    kept = np.arange(count + 1)
    log_ways = gammaln(count + 1) - gammaln(kept + 1) - gammaln(count - kept + 1)
    masses = np.exp(log_ways + kept * one - count * np.logaddexp(0, one))
    losses = (2 * kept - count) * one
    charges = [Charge(mechanism=Approximate(epsilon=one), count=count)]
    for at in (0.5, 2.1, 5.0, 7.4):
        exact = float(np.sum(masses * np.maximum(0, -np.expm1(at - losses))))
        found = delta(charges, epsilon=at)
        assert exact * (1 - ROUNDING) <= found <= exact * (1 + 2e-2)


def test_failure_probabilities_add_up() -> None:
    charges = [Charge(mechanism=Approximate(epsilon=0.1, delta=1e-4), count=10)]
    certain = 1 - (1 - 1e-4) ** 10
    assert epsilon(charges, delta=certain * 0.999) == math.inf
    assert certain * (1 - ROUNDING) <= delta(charges, epsilon=1.01) <= certain * (1 + 1e-6)


def test_discrete_gaussian_against_the_sum_over_integers() -> None:
    sigma, shift = 3.0, 2
    x = np.arange(-200, 203)
    noise = np.exp(-((x - shift) ** 2) / (2 * sigma**2))
    other = np.exp(-(x**2) / (2 * sigma**2))
    noise, other = noise / noise.sum(), other / other.sum()
    for at in (0.1, 1.0, 3.0):
        exact = float(np.sum(np.maximum(0, noise - math.exp(at) * other)))
        found = delta([Charge(mechanism=DiscreteGaussian(sigma=sigma, sensitivity=2.5))], epsilon=at)
        assert exact * (1 - ROUNDING) <= found <= exact * (1 + 2e-2)


@pytest.mark.parametrize(("sigma", "rate", "others"), [(1.0, 0.5, 2), (0.6, 0.3, 3), (2.0, 0.7, 1)])
@pytest.mark.parametrize("at", [0.05, 0.5, 1.5])
def test_truncated_sampling_bounds_the_worst_small_data_set(
    sigma: float, rate: float, others: int, at: float
) -> None:
    """All outputs integrated: others push down, the unit in question up, and one batch place is fought for."""
    max_batch = 1
    x = np.linspace(-40 * sigma, 40 * sigma, 200_001)

    def density(places: dict[int, float]) -> NDArray[np.float64]:
        parts = [weight * norm.pdf(x, loc=place, scale=sigma) for place, weight in places.items()]
        return np.asarray(np.sum(parts, axis=0))

    none = (1 - rate) ** others
    without = density({0: none, -1: 1 - none})
    # With the unit: sampled alone it is used; among k sampled others with probability 1 / (k + 1).
    used = sum(
        math.comb(others, k) * rate**k * (1 - rate) ** (others - k) * max_batch / (k + 1)
        for k in range(others + 1)
    )
    nobody = (1 - rate) * none
    with_unit = density({0: nobody, 1: rate * used, -1: 1 - nobody - rate * used})
    width = x[1] - x[0]
    exact = max(
        float(np.sum(np.maximum(0, with_unit - math.exp(at) * without)) * width),
        float(np.sum(np.maximum(0, without - math.exp(at) * with_unit)) * width),
    )
    mechanism = TruncatedSampledGaussian(
        noise_multiplier=sigma, sample_rate=rate, population=others, max_batch=max_batch
    )
    found = delta([Charge(mechanism=mechanism)], epsilon=at)
    assert exact * (1 - 1e-6) <= found < 1
    untruncated = delta(
        [Charge(mechanism=SampledGaussian(noise_multiplier=sigma, sample_rate=rate))], epsilon=at
    )
    assert found > untruncated


def test_true_positive_bound_is_the_gaussian_trade_off() -> None:
    charges = [Charge(mechanism=Gaussian(noise_multiplier=1.0))]
    for rate in (0.001, 0.1, 0.5):
        exact = float(norm.cdf(norm.ppf(rate) + 1.0))
        found = true_positive_bound(charges, false_positive_rate=rate)
        assert exact * (1 - 1e-6) <= found <= exact + 5e-3
    assert true_positive_bound([], false_positive_rate=0.3) == pytest.approx(0.3)
