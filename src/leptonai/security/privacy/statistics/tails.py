"""Tails of the discrete noises: error bars, and thresholds that a lone unit passes with small probability."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import assert_never

from leptonai.core.errors import InputError

COVERAGE = 0.95
MAX_SCALE = 1 << 47
MAX_SIGMA_SQUARED = 1 << 61


@dataclass(frozen=True, slots=True, kw_only=True)
class LaplaceNoise:
    """Integers x with probability proportional to exp(-|x| / scale), scale > 0."""

    scale: Fraction

    def __post_init__(self) -> None:
        _check(self.scale, MAX_SCALE)


@dataclass(frozen=True, slots=True, kw_only=True)
class GaussianNoise:
    """Integers x with probability proportional to exp(-x^2 / (2 sigma_squared)), sigma_squared > 0."""

    sigma_squared: Fraction

    def __post_init__(self) -> None:
        _check(self.sigma_squared, MAX_SIGMA_SQUARED)


Noise = LaplaceNoise | GaussianNoise


def _check(scale: Fraction, most: int) -> None:
    if not 0 < scale <= most:
        raise InputError(
            "the noise would not fit 64 bits", hint="take a coarser step, narrower bounds or a larger epsilon"
        )


def upper_tail(noise: Noise, at: int) -> float:
    """An upper bound on the probability that the noise is at least ``at``, >= 1; exact for Laplace.

    Source: Canonne, Kamath and Steinke 2020, proposition 25, for the discrete Gaussian.

    >>> round(upper_tail(LaplaceNoise(scale=Fraction(1)), 1), 4)
    0.2689
    """
    match noise:
        case LaplaceNoise():
            ratio = math.exp(-1 / noise.scale)
            return math.exp(-at / noise.scale) / (1 + ratio)
        case GaussianNoise():
            return math.erfc((at - 1) / math.sqrt(2 * noise.sigma_squared)) / 2
        case _:
            assert_never(noise)


def tail_start(noise: Noise, probability: float) -> int:
    """The least whole number >= 1 from which on the upper tail holds at most ``probability``, > 0.

    >>> tail_start(LaplaceNoise(scale=Fraction(1)), 0.27)
    1
    """
    high = 1
    while upper_tail(noise, high) > probability:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        if upper_tail(noise, middle) > probability:
            low = middle
        else:
            high = middle
    return high


def error_bar(noise: Noise, coverage: float = COVERAGE) -> int:
    """The least t such that the noise lies in [-t, t] with at least the probability ``coverage``.

    >>> error_bar(LaplaceNoise(scale=Fraction(1)))
    3
    """
    return tail_start(noise, (1 - coverage) / 2) - 1
