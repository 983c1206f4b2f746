"""Numbers onto integers: noise is added to whole numbers of steps, never to floating-point numbers.

Floating-point noise has gaps that give the exact answer away (Mironov 2012); integers have none.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError

MAX_STEPS = 1 << 31
"""The most steps from zero: sums of two billion such values still fit 64 bits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """The values that a column's numbers are cut and rounded to.

    Args:
        low, high: bounds from public knowledge, low < high; values beyond them count as the bound.
        step: distance of two values, > 0 and at most ``high - low``.

    Raises:
        InputError: the bounds are reversed, or the step does not fit them.

    >>> grid = Grid(low=Fraction(0), high=Fraction(10), step=Fraction(1, 2))
    >>> grid.steps(np.array([-3.0, 1.2, 99.0])).tolist()
    [0, 2, 20]
    """

    low: Fraction
    high: Fraction
    step: Fraction

    def __post_init__(self) -> None:
        shown = f"{float(self.low):g}:{float(self.high):g}"
        if not self.low < self.high:
            hint = "write the lower bound first: low:high"
            raise InputError(f"bounds: expected low < high, found {shown}", hint=hint)
        if not 0 < self.step <= self.high - self.low:
            raise InputError(f"step: expected more than 0 and at most the width of the bounds {shown}")
        if max(abs(self.first), abs(self.last)) > MAX_STEPS:
            raise InputError(f"step: too small for the bounds {shown}", hint="at most 2^31 steps from zero")
        if self.first >= self.last:
            raise InputError(f"step: the bounds {shown} hold fewer than two multiples of it")

    @property
    def first(self) -> int:
        """The lowest value, in steps from zero."""
        return math.ceil(self.low / self.step)

    @property
    def last(self) -> int:
        """The highest value, in steps from zero."""
        return math.floor(self.high / self.step)

    def steps(self, values_N: NDArray[np.float64]) -> NDArray[np.int64]:
        """Each value, none of them NaN, cut to the bounds and rounded, in steps from zero."""
        cut_N = np.clip(values_N, float(self.low), float(self.high))
        return np.clip(np.rint(cut_N / float(self.step)).astype(np.int64), self.first, self.last)


def decimal_fraction(value: float) -> Fraction:
    """The number as it is written: 0.1 is one tenth, not the binary fraction next to it.

    >>> decimal_fraction(0.1)
    Fraction(1, 10)
    """
    return Fraction(repr(value)) if isinstance(value, float) else Fraction(value)


def default_step(low: Fraction, high: Fraction) -> Fraction:
    """The power of ten that divides the bounds into ten to a hundred thousand steps.

    >>> default_step(Fraction(0), Fraction(100)), default_step(Fraction(17), Fraction(90))
    (Fraction(1, 100), Fraction(1, 1000))
    """
    if not low < high:
        return Fraction(1)  # Grid says what is wrong with the bounds
    exponent = math.floor(math.log10(high - low) + 1e-9) - 4
    return Fraction(10) ** exponent
