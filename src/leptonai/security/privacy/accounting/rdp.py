"""Renyi differential privacy: an account that is quick, looser than loss distributions, and independent of them.

The Renyi divergence of order a between a mechanism's outputs on neighbouring data adds up under composition,
and bounds epsilon at any delta. Every mechanism has one, so this account never fails.

Sources: Mironov 2017 (arXiv:1702.07476); Mironov, Talwar & Zhang 2019 (arXiv:1908.10530); Canonne, Kamath &
Steinke 2020 (arXiv:2004.00010), Proposition 12.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import assert_never

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, log_ndtr, logsumexp

from leptonai.security.privacy.accounting.mechanisms import (
    Approximate,
    Charge,
    DiscreteGaussian,
    Gaussian,
    Laplace,
    Mechanism,
    SampledGaussian,
    TruncatedSampledGaussian,
)
from leptonai.security.privacy.accounting.truncation import overflow_probability

Array = NDArray[np.float64]

INTEGER_ORDERS = (*range(2, 65), *(int(64 * 2 ** (k / 4)) for k in range(1, 33)))
FRACTIONAL_ORDERS = (1.05, *(k / 10 for k in range(11, 60) if k % 10), *(k + 0.5 for k in range(6, 12)))
ORDERS: tuple[float, ...] = tuple(sorted((*FRACTIONAL_ORDERS, *INTEGER_ORDERS)))
"""Orders that the divergences are computed at; the more there are, the tighter the account."""

_ROUNDING = 1e-7
"""Added relatively to every moment: above the rounding of its series."""


def rdp_epsilon(charges: Sequence[Charge], *, delta: float) -> float:
    """Epsilon at ``delta`` by Renyi divergences; infinite where none is finite.

    >>> from leptonai.security.privacy.accounting.mechanisms import Gaussian
    >>> round(rdp_epsilon([Charge(mechanism=Gaussian(noise_multiplier=10.0), count=100)], delta=1e-6), 2)
    5.22
    """
    certain, divergences = _compose(charges)
    spare = (delta - certain) / (1 - certain) if certain < 1 else 0.0
    if not np.any(divergences):
        return 0.0 if delta >= certain else math.inf
    if spare <= 0:
        return math.inf
    orders = np.array(ORDERS)
    found = divergences + np.log1p(-1 / orders) - (math.log(spare) + np.log(orders)) / (orders - 1)
    return max(0.0, float(np.nanmin(found)))


def rdp_delta(charges: Sequence[Charge], *, epsilon: float) -> float:
    """Delta at ``epsilon`` by Renyi divergences, at most 1."""
    certain, divergences = _compose(charges)
    if not np.any(divergences):
        return certain
    orders = np.array(ORDERS)
    exponent = (orders - 1) * (divergences - epsilon) - np.log(orders) + (orders - 1) * np.log1p(-1 / orders)
    rest = math.exp(min(0.0, float(np.nanmin(exponent))))
    return min(1.0, certain + (1 - certain) * rest)


def _compose(charges: Sequence[Charge]) -> tuple[float, Array]:
    """Probability that nothing is promised, and the summed divergences at :data:`ORDERS`."""
    total, kept = np.zeros(len(ORDERS)), 0.0
    for charge in charges:
        if charge.count:
            total = total + charge.count * _divergences(charge.mechanism)
            if isinstance(charge.mechanism, Approximate):
                kept += charge.count * math.log1p(-charge.mechanism.delta)
    return -math.expm1(kept), total


@lru_cache(maxsize=1024)
def _divergences(mechanism: Mechanism) -> Array:
    """Renyi divergence of one use at each of :data:`ORDERS`, the larger of both directions."""
    orders = np.array(ORDERS)
    match mechanism:
        case Gaussian(noise_multiplier=sigma):
            return orders / (2 * sigma**2)
        case Laplace(noise_multiplier=scale):
            return _laplace(orders, scale)
        case SampledGaussian(noise_multiplier=sigma, sample_rate=rate):
            return np.asarray(_sampled(sigma, rate) / (orders - 1))
        case TruncatedSampledGaussian(noise_multiplier=sigma, sample_rate=rate):
            tau = overflow_probability(mechanism)
            return np.asarray(_mixed(_sampled(sigma, rate), _sampled(sigma / 2, rate), tau) / (orders - 1))
        case DiscreteGaussian():
            return _discrete_gaussian(mechanism)
        case Approximate(epsilon=epsilon):
            return _randomised_response(orders, epsilon)
        case _:
            assert_never(mechanism)


def _mixed(usual: Array, doubled: Array, tau: float) -> Array:
    """Log moments of a public mixture: an overflowing sample (probability tau) doubles the sensitivity."""
    if tau == 0:
        return usual
    return np.asarray(np.logaddexp(math.log1p(-tau) + usual, math.log(tau) + doubled))


def _laplace(orders: Array, scale: float) -> Array:
    """Mironov 2017, Proposition 6."""
    up = np.log(orders / (2 * orders - 1)) + (orders - 1) / scale
    down = np.log((orders - 1) / (2 * orders - 1)) - orders / scale
    return np.asarray(np.logaddexp(up, down) / (orders - 1))


def _randomised_response(orders: Array, epsilon: float) -> Array:
    """Of the pair that dominates every epsilon-private mechanism (Kairouz, Oh & Viswanath 2015)."""
    if epsilon == 0:
        return np.zeros(len(orders))
    keep, flip = -np.logaddexp(0, -epsilon), -np.logaddexp(0, epsilon)
    first = orders * keep + (1 - orders) * flip
    second = orders * flip + (1 - orders) * keep
    return np.asarray(np.logaddexp(first, second) / (orders - 1))


def _discrete_gaussian(mechanism: DiscreteGaussian) -> Array:
    """Canonne, Kamath & Steinke 2020: a Gaussian's divergence bounds it; sampled, the k-th moments agree.

    The moment E[(P/Q)^k] of a lattice shift is exactly a Gaussian's for whole k, hence only whole orders.
    """
    orders, sigma = np.array(ORDERS), mechanism.sigma / mechanism.sensitivity
    if mechanism.sample_rate == 1:
        return orders / (2 * sigma**2)
    found = [
        _log_moment_whole(int(order), sigma, mechanism.sample_rate) / (order - 1)
        if order == int(order)
        else math.inf
        for order in orders
    ]
    return np.array(found)


@lru_cache(maxsize=1024)
def _sampled(sigma: float, rate: float) -> Array:
    """Log moments (order - 1) * divergence of the Poisson-sampled Gaussian, at :data:`ORDERS`."""
    if rate == 1:
        orders = np.array(ORDERS)
        return np.asarray(orders * (orders - 1) / (2 * sigma**2))
    return np.array(
        [
            _log_moment_whole(int(order), sigma, rate)
            if order == int(order)
            else _log_moment_fractional(order, sigma, rate)
            for order in ORDERS
        ]
    )


def _log_moment_whole(order: int, sigma: float, rate: float) -> float:
    """Mironov, Talwar & Zhang 2019, section 3.3, whole orders, less the binomial sum that is 1.

    Only positive terms are left, so that a divergence of 1e-20 is as exact as one of 1.
    """
    k = np.arange(2, order + 1, dtype=float)
    log_binomial = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    growth = k * (k - 1) / (2 * sigma**2)
    log_growth_less_one = growth + np.log(-np.expm1(-growth))
    terms = log_binomial + k * math.log(rate) + (order - k) * math.log1p(-rate) + log_growth_less_one
    return float(np.logaddexp(0.0, logsumexp(terms))) * (1 + _ROUNDING)


def _log_moment_fractional(order: float, sigma: float, rate: float) -> float:
    """Mironov, Talwar & Zhang 2019, section 3.3, fractional orders; infinite if the series has not settled.

    The binomial series alternates in sign past the order; it is cut where its terms are below e^-40 of the sum.
    """
    middle = sigma**2 * math.log(1 / rate - 1) + 0.5
    i = np.arange(500, dtype=float)
    j = order - i
    log_binomial = gammaln(order + 1) - gammaln(i + 1) - gammaln(np.where(j > -1, j, 0) + 1)
    beyond = j <= -1  # 1/Gamma(j + 1) by reflection: Gamma(-j) |sin(pi j)| / pi
    reflected = (
        gammaln(np.where(beyond, -j, 1)) + np.log(np.abs(np.sin(np.pi * j)) + 1e-300) - math.log(math.pi)
    )
    log_binomial = np.where(beyond, gammaln(order + 1) - gammaln(i + 1) + reflected, log_binomial)
    sign = np.where(beyond, np.where((np.ceil(-j) % 2) == 0, -1.0, 1.0), 1.0)
    low = i * math.log(rate) + j * math.log1p(-rate) + (i * i - i) / (2 * sigma**2)
    low = low + log_ndtr((middle - i) / sigma)
    high = j * math.log(rate) + i * math.log1p(-rate) + (j * j - j) / (2 * sigma**2)
    high = high + log_ndtr((j - middle) / sigma)
    terms = log_binomial + np.logaddexp(low, high)
    largest = float(np.max(terms))
    if terms[-1] > largest - 40 or not math.isfinite(largest):
        return math.inf
    total = float(np.sum(sign * np.exp(terms - largest)))
    found = largest + math.log(total) if total > 1e-6 else math.inf
    return found * (1 + _ROUNDING) if found > 1e-7 else math.inf  # below: lost in the rounding of 1 + found
