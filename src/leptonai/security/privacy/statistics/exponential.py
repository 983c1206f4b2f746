"""Quantiles by the exponential mechanism, sampled exactly: weights are whole numbers, so nothing is rounded.

A candidate's level says how far it is from being the quantile; level 0 is the quantile itself. Its weight
falls with the level by a ratio that is never above ``exp(gamma)`` from one level to the next, because each weight
is the one before times a fraction, rounded up. So a candidate's probability changes by at most
``exp(2 * gamma * d)`` where a unit moves its level by d, and no account of rounding is needed.

Cost: time O(R log R) for R rows, whatever the grid; epsilon ``2 * gamma * sensitivity`` in all groups together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from leptonai.security.privacy.statistics.grid import Grid
from leptonai.security.privacy.statistics.query import Limits
from leptonai.security.privacy.statistics.randomness import Chooser

TOP_BITS = 128
MAX_LEVELS = 1 << 18
"""Levels beyond this one weigh the same as it; that keeps the sensitivity."""
_COARSEST = 64
_RATIO_BITS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class ExponentialNoise:
    """How strongly a quantile is blurred.

    Args:
        at: the quantile, in (0, 1).
        coarseness: raw levels that make one level, >= 1.
        sensitivity: by how much one unit can move a candidate's level, summed over groups, >= 1.
        gamma: the logarithm of the weights' ratio between levels, > 0.
    """

    at: Fraction
    coarseness: int
    sensitivity: int
    gamma: Fraction

    @property
    def epsilon(self) -> Fraction:
        """What one draw for every group costs."""
        return 2 * self.gamma * self.sensitivity

    def rank_error(self, grid: Grid, probability: float) -> float:
        """Rows by which the answer's rank is off at most, except with ``probability``."""
        levels = math.log((grid.last - grid.first + 1) / probability) / float(self.gamma)
        return math.ceil(levels + 1) * self.coarseness / self.at.denominator


def exponential_noise(at: Fraction, limits: Limits, epsilon: Fraction) -> ExponentialNoise:
    """The blur that costs ``epsilon``, > 0, for units within ``limits``.

    One row moves a raw level by at most ``max(a, b - a)`` for the quantile a/b. Raw levels are put together by
    ``coarseness``, which may cost one level more for each group touched.
    """
    raw = limits.rows * max(at.numerator, at.denominator - at.numerator)
    coarseness = max(1, raw // _COARSEST)
    sensitivity = raw if coarseness == 1 else raw // coarseness + limits.touched
    return ExponentialNoise(
        at=at, coarseness=coarseness, sensitivity=sensitivity, gamma=epsilon / (2 * sensitivity)
    )


def level_weights(gamma: Fraction) -> list[int]:
    """Weights of levels 0, 1, ...; the last one is that of all further levels.

    >>> level_weights(Fraction(1))[0] == 2**128
    True
    """
    # Rounded up twice over: Decimal is right to its last digit, and a larger ratio only costs less.
    exponent = Context(prec=60).divide(Decimal(-gamma.numerator), Decimal(gamma.denominator))
    ratio = min(int(exponent.exp(Context(prec=60)) * (1 << _RATIO_BITS)) + 2, 1 << _RATIO_BITS)
    weights = [1 << TOP_BITS]
    while len(weights) < MAX_LEVELS:
        following = -(-weights[-1] * ratio >> _RATIO_BITS)
        if following == weights[-1]:
            break
        weights.append(following)
    return weights


def candidate_levels(
    steps_R: NDArray[np.int64], grid: Grid, noise: ExponentialNoise
) -> tuple[list[int], list[int], list[int]]:
    """Runs of neighbouring candidates of equal level, over the whole grid: first candidates, widths, levels.

    The raw level of c for the quantile a/b of R rows is how far ``b * (rows below c)`` lies above ``a * R``, or
    ``b * (rows up to c)`` below it; a true quantile has 0.
    """
    a, b = noise.at.numerator, noise.at.denominator
    found_V, counts_V = np.unique(steps_R, return_counts=True)
    upto_V = np.cumsum(counts_V).tolist()
    target = a * len(steps_R)
    firsts, widths, raw = [], [], []
    position, below = grid.first, 0
    for value, upto in zip(found_V.tolist(), upto_V, strict=True):
        if value > position:
            firsts.append(position)
            widths.append(value - position)
            raw.append(abs(b * below - target))
        firsts.append(value)
        widths.append(1)
        raw.append(max(b * below - target, target - b * upto, 0))
        position, below = value + 1, upto
    if position <= grid.last:
        firsts.append(position)
        widths.append(grid.last + 1 - position)
        raw.append(abs(b * below - target))
    return firsts, widths, [level // noise.coarseness for level in raw]


def draw_quantile(
    steps_R: NDArray[np.int64], grid: Grid, noise: ExponentialNoise, weights: Sequence[int], chooser: Chooser
) -> int:
    """One quantile, in steps of ``grid``; ``weights`` are those of ``noise.gamma``."""
    firsts, widths, levels = candidate_levels(steps_R, grid, noise)
    last = len(weights) - 1
    masses = [width * weights[min(level, last)] for width, level in zip(widths, levels, strict=True)]
    left = chooser.below(sum(masses))
    for first, level, mass in zip(firsts, levels, masses, strict=True):
        if left < mass:
            return first + left // weights[min(level, last)]
        left -= mass
    raise AssertionError("a number below the sum of the masses falls into one of them")
