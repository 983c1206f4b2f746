"""Charges in their simplest form, and those whose cost is known exactly."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.optimize import brentq
from scipy.special import log_ndtr

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

_SLACK = 1e-9
"""Added relatively to what closed forms give, above their rounding."""


def normalised(charges: Sequence[Charge]) -> list[Charge]:
    """Equal charges joined and Gaussians summed to one, in an order that does not depend on theirs."""
    counts: dict[Mechanism, int] = {}
    precision = 0.0
    for charge in charges:
        simple = _simplest(charge.mechanism)
        if charge.count == 0 or simple is None:
            continue
        if isinstance(simple, Gaussian):
            precision += charge.count / simple.noise_multiplier**2
        else:
            counts[simple] = counts.get(simple, 0) + charge.count
    if precision > 0:
        counts[Gaussian(noise_multiplier=1 / math.sqrt(precision))] = 1
    return [Charge(mechanism=kind, count=counts[kind]) for kind in sorted(counts, key=repr)]


def _simplest(mechanism: Mechanism) -> Mechanism | None:
    """The same mechanism in its simplest form; None where it reveals nothing."""
    match mechanism:
        case TruncatedSampledGaussian(noise_multiplier=sigma, sample_rate=rate):
            if overflow_probability(mechanism) > 0:
                return mechanism
            return _simplest(SampledGaussian(noise_multiplier=sigma, sample_rate=rate))
        case SampledGaussian(noise_multiplier=sigma, sample_rate=1):
            return Gaussian(noise_multiplier=sigma)
        case DiscreteGaussian(dimensions=1, sensitivity=sensitivity) if sensitivity < 1:
            return None
        case Approximate(epsilon=0, delta=0):
            return None
        case _:
            return mechanism


def pure_epsilon(charges: Sequence[Charge]) -> float:
    """Sum of the largest losses; infinite where a mechanism has none."""
    total = 0.0
    for charge in charges:
        match charge.mechanism:
            case Laplace(noise_multiplier=scale):
                total += charge.count / scale
            case Approximate(epsilon=largest, delta=0):
                total += charge.count * largest
            case _:
                return math.inf
    return total * (1 + 1e-15)


def only_gaussian(charges: Sequence[Charge]) -> float | None:
    """The noise multiplier of charges that are a single Gaussian in their normal form, else None."""
    if len(charges) == 1 and isinstance(charges[0].mechanism, Gaussian):
        return charges[0].mechanism.noise_multiplier
    return None


def gaussian_delta(noise_multiplier: float, *, epsilon: float) -> float:
    """Exact delta of the Gaussian mechanism, rounded up.

    Source: Balle & Wang 2018 (arXiv:1805.06530), Theorem 8.

    >>> round(gaussian_delta(1.0, epsilon=0.0), 4)
    0.3829
    """
    half = 1 / (2 * noise_multiplier)
    first = float(log_ndtr(half - epsilon * noise_multiplier))
    second = epsilon + float(log_ndtr(-half - epsilon * noise_multiplier))
    ratio = -math.expm1(min(second - first, 0.0))
    slack = _SLACK + 1e-14 * (1 + abs(first) + abs(epsilon)) / max(ratio, 1e-300)
    return min(1.0, math.exp(first) * ratio * (1 + slack))


def gaussian_epsilon(noise_multiplier: float, *, delta: float) -> float:
    """Epsilon of the Gaussian mechanism by its exact delta, rounded up."""
    if gaussian_delta(noise_multiplier, epsilon=0.0) <= delta:
        return 0.0

    def excess(value: float) -> float:
        found = gaussian_delta(noise_multiplier, epsilon=value)
        return math.log(found / delta) if found > 0 else -1e3

    high = 1 / noise_multiplier
    while excess(high) > 0:
        high *= 2
    root = float(brentq(excess, 0.0, high, xtol=1e-14, rtol=1e-13))
    while gaussian_delta(noise_multiplier, epsilon=root) > delta:
        root = root * (1 + 1e-12) + 1e-15
    return root
