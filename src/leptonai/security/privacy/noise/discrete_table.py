"""The alias table from which discrete noise is drawn fast, and what to do where its integers do not suffice.

A distribution with probabilities proportional to f(abs(x)), f falling, is cut into buckets of ``width`` integers; a
bucket's weight is f at its start. Weights are irrational. Multiplied by ``scale`` and cut to integers they fill an
alias table; the parts cut off (residues) lie with some room to spare in one entry of the table, and whoever picks it
settles the matter with exact coins. So what is drawn has the true distribution, not one rounded to the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import ROUND_FLOOR, Context, Decimal, localcontext
from fractions import Fraction
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from leptonai.security.privacy.noise.coins import Coins

Shape = Literal["gaussian", "laplace"]

# A bucket spans between 1/32 and 1/16 of the noise's scale: then 97 of 100 draws need no coin beyond the first word,
# and the table fits a core's first cache.
_BUCKETS_PER_SCALE = 16
# Buckets past the table come in groups; weights at least halve from a group to the next, see `_first_beyond`.
_GROUP = 64
_DIGITS = 60


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """How to draw from one distribution.

    Args:
        shape: ``gaussian``, f = exp(-x^2 / (2 parameter)), or ``laplace``, f = exp(-x / parameter).
        parameter: sigma squared, or the scale; > 0.
        width_bits: a bucket has 2^width_bits integers.
        scale: what weights are multiplied by before they are cut to integers.
        whole: the integer parts, for each bucket before those called beyond.
        slot_bits, dropped_bits, cuts, aliases: the alias table, as ``compiled/discrete.c`` reads it.
        sure: for each entry, the first word from which an integer of the bucket is kept whatever its place.
        room: the weight of the entry for all residues.
    """

    shape: Shape
    parameter: Fraction
    width_bits: int
    scale: int
    whole: tuple[int, ...]
    slot_bits: int
    dropped_bits: int
    cuts: NDArray[np.uint64]
    aliases: NDArray[np.uint32]
    sure: NDArray[np.uint64]
    room: int

    @property
    def rare_bucket(self) -> int:
        """The entry that stands for all residues."""
        return self.entries - 1

    @property
    def entries(self) -> int:
        """Buckets in the table, and one for the residues."""
        return sum(1 for weight in self.whole if weight) + 1

    def gamma(self, value: int) -> Fraction:
        """-ln f(value) for a value >= 0."""
        return _gamma(self.shape, self.parameter, value)

    def gamma_ratio(self) -> tuple[int, int]:
        """What a step within a bucket, as ``compiled/discrete.c`` counts it, adds to gamma: numerator, denominator."""
        times = 2 if self.shape == "gaussian" else 1
        return self.parameter.denominator, times * self.parameter.numerator

    def rare(self, coins: Coins) -> int | None:
        """One attempt of a sample from the residues; None: rejected, draw anew from the whole table."""
        unit = coins.below(self.room)
        beyond = len(self.whole)
        if unit < 2 * beyond:  # two units a bucket: a residue may pass one by the error of the table's digits
            bucket, share = unit // 2, Fraction(1, 2)
        elif unit < 2 * beyond + 2:
            group = 0
            while coins.below(2):
                group += 1
            bucket, share = beyond + _GROUP * group + coins.below(_GROUP), Fraction(_GROUP * 2**group)
        else:
            return None
        if not coins.real(lambda bits: self._residue(bucket, share, bits)):
            return None
        return self._within(bucket, coins)

    def _residue(self, bucket: int, share: Fraction, bits: int) -> tuple[Fraction, Fraction]:
        """Bounds, 2^-bits apart, of a bucket's residue times ``share``."""
        gamma = self.gamma(bucket << self.width_bits)
        spare = bits + self.scale.bit_length() + share.numerator.bit_length()
        low, high = _exp_minus(gamma, spare)
        whole = self.whole[bucket] if bucket < len(self.whole) else 0
        return (self.scale * low - whole) * share, (self.scale * high - whole) * share

    def _within(self, bucket: int, coins: Coins) -> int | None:
        start = bucket << self.width_bits
        value = start + coins.below(1 << self.width_bits)
        negative = bool(coins.below(2))
        if not value and negative:
            return None
        if not coins.exp_minus(self.gamma(value) - self.gamma(start)):
            return None
        return -value if negative else value


@lru_cache(maxsize=8)
def make_table(shape: Shape, parameter: Fraction, total_bits: int = 64) -> Table:
    """The table of a distribution.

    Args:
        shape, parameter: see :class:`Table`; the square root of a Gaussian's parameter is its scale.
        total_bits: the table's weights sum to 2^total_bits, at most 64; fewer only to test what else is rare.
    """
    width_bits = _width_bits(shape, parameter)
    starts = _starts(shape, parameter, width_bits, total_bits)
    with localcontext(Context(prec=_DIGITS)):
        weights = [_decimal_exp(_gamma(shape, parameter, start)) for start in starts]
        error = Decimal(10) ** (8 - _DIGITS)
        budget = Decimal(2**total_bits - 2 * len(starts) - 2)
        scale = int((budget / (sum(weights) * (1 + error))).to_integral_value(ROUND_FLOOR))
        whole = tuple(int((scale * w * (1 - error)).to_integral_value(ROUND_FLOOR)) for w in weights)
    room = 2**total_bits - sum(whole)
    parts = [*(weight for weight in whole if weight), room]
    slot_bits = max(1, (len(parts) - 1).bit_length())
    cuts, aliases = _alias(parts, slot_bits, total_bits)
    return Table(
        shape=shape, parameter=parameter, width_bits=width_bits, scale=scale, whole=whole, room=room,
        slot_bits=slot_bits, dropped_bits=64 - total_bits, cuts=cuts, aliases=aliases,
        sure=_sure(shape, parameter, width_bits, len(parts)),
    )  # fmt: skip


def _gamma(shape: Shape, parameter: Fraction, value: int) -> Fraction:
    return value * value / (2 * parameter) if shape == "gaussian" else value / parameter


def _width_bits(shape: Shape, parameter: Fraction) -> int:
    """The widest bucket of a power of two that is at most a sixteenth of the scale, but one integer at least."""
    bits = 0
    while True:
        spread = Fraction(_BUCKETS_PER_SCALE * 2 ** (bits + 1))
        if (spread * spread if shape == "gaussian" else spread) > parameter:
            return bits
        bits += 1


def _starts(shape: Shape, parameter: Fraction, width_bits: int, total_bits: int) -> list[int]:
    """Where the buckets begin whose weight, times any scale below 2^total_bits, may exceed 1/64.

    From there on weights halve, or more, in 64 buckets, so that a residue in group g is at most 2^-g / 64: for the
    Gaussian as 64 k width^2 / sigma^2 >= k / 16 > ln 2 for k >= 12, for Laplace as 64 width / scale >= 2.
    """
    enough = Fraction(total_bits + 7) * Fraction(7, 10)  # 0.7 > ln 2, and one bit to spare
    starts: list[int] = []
    while len(starts) < 12 or _gamma(shape, parameter, len(starts) << width_bits) < enough:
        starts.append(len(starts) << width_bits)
    return starts


def _sure(shape: Shape, parameter: Fraction, width_bits: int, entries: int) -> NDArray[np.uint64]:
    """For each entry, gamma's most within the bucket, in 2^-64 and rounded up."""
    width = 1 << width_bits
    words = [0] * entries
    for bucket in range(entries - 1):
        last, start = bucket * width + width - 1, bucket * width
        most = _gamma(shape, parameter, last) - _gamma(shape, parameter, start)
        words[bucket] = -int(-most * 2**64 // 1)
    return np.array(words, dtype=np.uint64)


def _alias(
    parts: list[int], slot_bits: int, total_bits: int
) -> tuple[NDArray[np.uint64], NDArray[np.uint32]]:
    """Vose's alias table in integers: slot i is i below its cut and the alias from there on."""
    slots, size = 1 << slot_bits, 1 << (total_bits - slot_bits)
    left = parts + [0] * (slots - len(parts))
    cuts, aliases = [size] * slots, list(range(slots))
    small = [i for i in range(slots) if left[i] < size]
    large = [i for i in range(slots) if left[i] >= size]
    while small:
        slot, donor = small.pop(), large[-1]
        cuts[slot], aliases[slot] = left[slot], donor
        left[donor] -= size - left[slot]
        if left[donor] < size:
            small.append(large.pop())
    return np.array(cuts, dtype=np.uint64), np.array(aliases, dtype=np.uint32)


def _decimal_exp(gamma: Fraction) -> Decimal:
    """exp(-gamma) in the current context; wrong by less than (2 + gamma) units of the last digit."""
    return (-Decimal(gamma.numerator) / Decimal(gamma.denominator)).exp()


def _exp_minus(gamma: Fraction, bits: int) -> tuple[Fraction, Fraction]:
    """Bounds of exp(-gamma), gamma >= 0, at most 2^-bits apart."""
    if gamma >= bits:
        return Fraction(0), Fraction(1, 2**bits)
    digits = bits // 3 + 12 + len(str(gamma.numerator // gamma.denominator))
    with localcontext(Context(prec=digits, Emin=-(10**9), Emax=10**9)):
        value = Fraction(_decimal_exp(gamma))
    error = Fraction(4, 2**bits) / 16
    return max(Fraction(0), value - error), value + error
