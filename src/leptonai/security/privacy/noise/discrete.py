"""Noise of whole numbers, drawn exactly: the discrete Gaussian and the discrete Laplace distribution.

Normals in floating point lie on a grid that depends on what they were rounded with, and an observer of the sum can
at times tell which values it cannot be (Mironov 2012; Casacuberta et al. 2022). Integers added to integers have no
such holes, if they follow their distribution exactly. No number here is rounded: probabilities are ratios of
integers, or known to as many digits as a draw takes to decide.

Source: Canonne, Kamath and Steinke 2020, "The discrete Gaussian for differential privacy".
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.security.privacy.noise.coins import Coins
from leptonai.security.privacy.noise.compiled.library import RARE, REFILL, discrete_library
from leptonai.security.privacy.noise.discrete_table import Shape, Table, make_table
from leptonai.security.privacy.noise.keystream import BLOCK_BYTES, DISCRETE, Keystream

_LIMIT = 2**62
_FAILED, _GIVEN, _REJECTED = 0, 1, 2


class DiscreteSource:
    """Independent whole numbers that nobody can predict; for one thread at a time.

    A fork continues as :class:`~leptonai.security.privacy.noise.keystream.Keystream` says.

    Args:
        key: 32 secret bytes, which decide all numbers; None (for all but tests): fresh and stored nowhere.
        compiled: False leaves the C library aside.

    Raises:
        InputError: the key is not 32 bytes.

    >>> DiscreteSource().gaussian(3, sigma_squared=Fraction(9, 4)).dtype
    dtype('int64')
    """

    __slots__ = ("_coins", "_keystream", "_library", "_total_bits")

    def __init__(self, key: bytes | None = None, *, compiled: bool = True) -> None:
        self._keystream = Keystream(key, purpose=DISCRETE)
        self._coins = Coins(self._keystream)
        self._library = discrete_library() if compiled else None
        self._total_bits = 64

    def gaussian(self, count: int, *, sigma_squared: Fraction) -> NDArray[np.int64]:
        """``count`` numbers x with probability proportional to exp(-x^2 / (2 sigma_squared)).

        Raises:
            InputError: count < 0, or sigma_squared is not > 0 or no ratio of integers below 2^62.
        """
        return self._draw("gaussian", sigma_squared, count)

    def laplace(self, count: int, *, scale: Fraction) -> NDArray[np.int64]:
        """``count`` numbers x with probability proportional to exp(-abs(x) / scale).

        Raises:
            InputError: count < 0, or scale is not > 0 or no ratio of integers below 2^62, or is 2^48 or more.
        """
        if scale >= 2**48:
            raise InputError("expected a scale below 2^48")
        return self._draw("laplace", scale, count)

    def _draw(self, shape: Shape, parameter: Fraction, count: int) -> NDArray[np.int64]:
        parameter = Fraction(parameter)
        if count < 0:
            raise InputError(f"expected count >= 0, found {count}")
        if parameter <= 0 or max(parameter.numerator, parameter.denominator) >= _LIMIT:
            raise InputError(
                f"{shape}: expected a ratio > 0 of integers below 2^62",
                hint="Fraction(value).limit_denominator(2**20)",
            )
        table = make_table(shape, parameter, self._total_bits)
        if self._library is None:
            return _drawn_by_numpy(table, self._keystream, self._coins, count)
        return _drawn_by_library(self._library, table, self._keystream, self._coins, count)


def _drawn_by_library(
    library: ctypes.CDLL, table: Table, keystream: Keystream, coins: Coins, count: int
) -> NDArray[np.int64]:
    samples = np.empty(count, dtype=np.int64)
    words = np.empty(min(BLOCK_BYTES // 8, 3 * count + 64), dtype=np.uint64)
    failures: list[BaseException] = []

    def refill() -> int:
        keystream.fill(words)
        return 1

    def rare(place: Any) -> int:
        drawn = table.rare(coins)
        if drawn is None:
            return _REJECTED
        place[0] = drawn
        return _GIVEN

    part, whole = table.gamma_ratio()
    done = library.lepton_discrete(
        table.cuts.ctypes.data, table.aliases.ctypes.data, table.sure.ctypes.data, table.rare_bucket,
        table.slot_bits, table.dropped_bits, table.width_bits, int(table.shape == "laplace"), part, whole,
        words.ctypes.data, words.size, REFILL(_kept(refill, failures)), RARE(_kept(rare, failures)),
        samples.ctypes.data, count,
    )  # fmt: skip
    if failures:
        raise failures[0]
    assert done
    return samples


def _kept(function: Callable[..., int], failures: list[BaseException]) -> Callable[..., int]:
    """The function, but an exception, which cannot pass through C, is put aside and stops the C loop."""

    def guarded(*arguments: Any) -> int:
        try:
            return function(*arguments)
        except BaseException as error:
            failures.append(error)
            return _FAILED

    return guarded


def _drawn_by_numpy(table: Table, keystream: Keystream, coins: Coins, count: int) -> NDArray[np.int64]:
    """What ``compiled/discrete.c`` does, for many attempts at once; what its first word leaves open, coins decide."""
    found: list[NDArray[np.int64]] = [np.empty(0, dtype=np.int64)]
    missing = count
    while missing > 0:
        attempts = min(missing + missing // 8 + 16, BLOCK_BYTES // 8)
        found.append(_attempts(table, keystream, coins, attempts)[:missing])
        missing -= len(found[-1])
    return np.concatenate(found)


def _attempts(table: Table, keystream: Keystream, coins: Coins, attempts: int) -> NDArray[np.int64]:
    pick, place, word = keystream.words(3 * attempts).reshape(3, attempts)
    slot = pick >> np.uint64(64 - table.slot_bits)
    height = (pick << np.uint64(table.slot_bits)) >> np.uint64(table.slot_bits + table.dropped_bits)
    bucket = np.where(height < table.cuts[slot], slot, table.aliases[slot])
    start = bucket << np.uint64(table.width_bits)
    value = (start + (place & np.uint64(2**table.width_bits - 1))).astype(np.int64)
    negative = place >> np.uint64(63) != 0
    kept = (value != 0) | ~negative
    samples = np.where(negative, -value, value)
    rare = bucket == table.rare_bucket
    for i in np.flatnonzero(kept & ~rare & (word < table.sure[bucket])):
        gamma = table.gamma(int(value[i])) - table.gamma(int(start[i]))
        kept[i] = _settled(gamma, int(word[i]), coins)
    for i in np.flatnonzero(rare):
        drawn = table.rare(coins)
        kept[i] = drawn is not None
        samples[i] = drawn or 0
    drawn_samples: NDArray[np.int64] = samples[kept]
    return drawn_samples


def _settled(gamma: Fraction, word: int, coins: Coins) -> bool:
    """True with probability exp(-gamma), gamma < 1, if ``word`` is the first that the coin draws."""
    scaled = gamma * 2**64
    heads = word < scaled if word != scaled // 1 else coins.ratio(scaled - word)
    tosses = 1
    while heads:
        tosses += 1
        heads = coins.ratio(gamma / tosses)
    return tosses % 2 == 1
