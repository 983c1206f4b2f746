"""Coins of exactly known probability, from random bits and integers alone.

Source: Canonne, Kamath and Steinke, "The discrete Gaussian for differential privacy", 2020, algorithms 1 to 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

from leptonai.security.privacy.noise.keystream import Keystream

_WORD = 2**64


class Coins:
    """Draws whose probabilities are exact; slow, for what happens seldom and for checking what is fast.

    Args:
        keystream: where the random bits come from.
    """

    __slots__ = ("_keystream",)

    def __init__(self, keystream: Keystream) -> None:
        self._keystream = keystream

    def word(self) -> int:
        """A uniform 64-bit word; none are kept ahead, which a forked process would share."""
        return int(self._keystream.words(1)[0])

    def below(self, limit: int) -> int:
        """A uniform whole number in [0, limit), limit >= 1."""
        bits = (limit - 1).bit_length()
        while True:
            drawn = 0
            for _ in range(-(-bits // 64)):
                drawn = drawn * _WORD + self.word()
            drawn >>= -bits % 64
            if drawn < limit:
                return drawn

    def ratio(self, probability: Fraction) -> bool:
        """True with this probability, in [0, 1]."""
        return self.below(probability.denominator) < probability.numerator

    def exp_minus(self, gamma: Fraction) -> bool:
        """True with probability exp(-gamma), gamma >= 0."""
        while gamma > 1:
            if not self.exp_minus(Fraction(1)):
                return False
            gamma -= 1
        tosses = 1
        while self.ratio(gamma / tosses):
            tosses += 1
        return tosses % 2 == 1

    def real(self, enclosure: Callable[[int], tuple[Fraction, Fraction]]) -> bool:
        """True with a real probability in [0, 1], known as closely as asked.

        Args:
            enclosure: bounds of the probability that are at most 2^-bits apart, for as many bits as given.
        """
        drawn, bits = 0, 0
        while True:
            drawn, bits = drawn * _WORD + self.word(), bits + 64
            low, high = enclosure(bits + 32)
            if Fraction(drawn + 1, 2**bits) <= low:
                return True
            if Fraction(drawn, 2**bits) >= high:
                return False

    def laplace(self, scale: Fraction) -> int:
        """A whole number with probability proportional to exp(-abs(x) / scale), scale > 0."""
        whole = scale.numerator
        while True:
            rest = self.below(whole)
            if not self.exp_minus(Fraction(rest, whole)):
                continue
            laps = 0
            while self.exp_minus(Fraction(1)):
                laps += 1
            size = (rest + whole * laps) // scale.denominator
            negative = bool(self.below(2))
            if size or not negative:
                return -size if negative else size

    def gaussian(self, sigma_squared: Fraction) -> int:
        """A whole number with probability proportional to exp(-x^2 / (2 sigma^2)), sigma^2 > 0."""
        scale = Fraction(_floor_root(sigma_squared) + 1)
        while True:
            drawn = self.laplace(scale)
            if self.exp_minus((abs(drawn) - sigma_squared / scale) ** 2 / (2 * sigma_squared)):
                return drawn


def _floor_root(value: Fraction) -> int:
    return math.isqrt(value.numerator // value.denominator)
