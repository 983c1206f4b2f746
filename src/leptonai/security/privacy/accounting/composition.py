"""Losses of many uses: an exponentially tilted Fourier transform with a bound on its rounding.

Weighting the losses by e^(order * loss) before they are added moves the sum's bulk to where delta is decided, so
that a delta of 1e-12 is as exact as one of 0.1 (exponential shift: Keich 2005; at the saddle point: Alghamdi et
al. 2023, arXiv:2208.09595). The transform works on a window. Sums that leave it at the bottom or the top come
back at the other end, where they only add; what left at the top is counted once more by a Chernoff bound.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len, rfft
from scipy.special import logsumexp

from leptonai.security.privacy.accounting.losses import Losses

Array = NDArray[np.float64]

UNIT = float(np.finfo(np.float64).eps)
_TRANSFORM_ERROR = 8 * UNIT
"""Relative to the 2-norm, for each halving of the length (Higham 2002, Theorem 24.2, with room)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """Where sums are wanted and how they are tilted: losses from ``low`` to ``high``, at a positive ``order``.

    ``beyond`` is the further order at which the Chernoff bound above ``high`` is taken.
    """

    order: float
    low: float
    high: float
    beyond: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Curve:
    """Upper bounds of delta at the grid's losses.

    At ``losses[i] <= epsilon <= losses[i + 1]``, delta is at most ``scale * (above[i + 1] - e^(epsilon -
    reference) * weighted[i + 1]) + rest``.
    """

    losses: Array
    above: Array
    weighted: Array
    log_scale: float
    reference: float
    rest: float

    def delta_at(self, epsilon: float) -> float | None:
        """Delta, or None where epsilon lies outside the window."""
        index = int(np.searchsorted(self.losses, epsilon, side="right"))
        if index == 0 or epsilon > self.losses[-1]:
            return None
        if index == len(self.losses):
            return min(1.0, self.rest)
        part = self.above[index] - math.exp(min(epsilon - self.reference, 700.0)) * self.weighted[index]
        return min(1.0, self._scaled(max(part, 0.0)) + self.rest)

    def epsilon_at(self, delta: float) -> float | None:
        """The smallest epsilon of the window whose delta is at most this; None if the window lies amiss.

        It is below the window's start when even that suffices: then None too, and :meth:`starts_below` is true.
        """
        room = self._unscaled(delta)
        growth = np.exp(np.minimum(self.losses[:-1] - self.reference, 700.0))
        (fits,) = np.nonzero(self.above[1:] - growth * self.weighted[1:] <= room)
        if not len(fits) or fits[0] == 0:
            return None
        index = int(fits[0])
        over = self.above[index] - room
        if over <= 0 or self.weighted[index] <= 0:
            return float(self.losses[index])
        exact = self.reference + math.log(over / self.weighted[index])
        return float(
            min(max(exact + 4 * UNIT * (1 + abs(exact)), self.losses[index - 1]), self.losses[index])
        )

    def starts_below(self, delta: float) -> bool:
        """Whether the window's first loss already suffices as an epsilon."""
        growth = math.exp(min(self.losses[0] - self.reference, 700.0))
        return bool(self.above[1] - growth * self.weighted[1] <= self._unscaled(delta))

    def _scaled(self, value: float) -> float:
        return math.exp(min(math.log(value) + self.log_scale, 700.0)) if value > 0 else 0.0

    def _unscaled(self, delta: float) -> float:
        room = delta - self.rest
        return math.exp(min(math.log(room) - self.log_scale, 700.0)) if room > 0 else -1.0


def compose(parts: Sequence[tuple[Losses, int]], window: Window) -> Curve:
    """The curve of delta of all the parts together, each used as often as its count says."""
    step = parts[0][0].step
    size = int(next_fast_len(max(64, math.ceil((window.high - window.low) / step) + 2), real=True))
    start = math.floor(window.low / step)
    shift = sum(count * losses.shift for losses, count in parts)
    log_moment, sums = _tilted_sums(parts, window.order, size, start)
    losses = np.asarray(np.arange(start, start + size) * step + shift, dtype=np.float64)
    high = (start + size) * step  # sums at and above this were wrapped
    infinite = -math.expm1(sum(count * math.log1p(-part.infinite) for part, count in parts))
    rest = infinite + _tail(parts, window.order + window.beyond, high)
    return _curve(losses, sums, log_moment, window.order, shift, rest)


def _curve(losses: Array, sums: Array, log_moment: float, order: float, shift: float, rest: float) -> Curve:
    # Near the window's start, so that no exponential overflows; what underflows lies e^-700 below it.
    reference = float(losses[0]) + 200 / max(order, 1.0)
    with np.errstate(under="ignore"):
        masses = sums * np.exp(-order * (losses - reference))
        weighted = masses * np.exp(-(losses - reference))
    slack = 2 * len(losses) * UNIT
    return Curve(
        losses=losses,
        above=np.cumsum(masses[::-1])[::-1] * (1 + slack),
        weighted=np.cumsum(weighted[::-1])[::-1] * (1 - slack),
        log_scale=log_moment
        - order * (reference - shift)
        + 1e-12 * (1 + abs(log_moment) + abs(order * reference)),
        reference=reference,
        rest=rest,
    )


def _tail(parts: Sequence[tuple[Losses, int]], order: float, high: float) -> float:
    """Chernoff bound of the probability that the sum reaches ``high``; exactly 0 where it cannot."""
    most = sum(count * int(losses.indices.max()) for losses, count in parts) * parts[0][0].step
    if most < high:
        return 0.0
    moment = sum(count * log_moment_of(losses, order) for losses, count in parts)
    return math.exp(min(0.0, moment - order * high + 1e-9 + 1e-12 * abs(moment)))


def log_moment_of(losses: Losses, order: float) -> float:
    """Logarithm of the sum of mass times e^(order * loss)."""
    return float(logsumexp(losses.log_masses + order * losses.values()))


def _tilted_sums(
    parts: Sequence[tuple[Losses, int]], order: float, size: int, start: int
) -> tuple[float, Array]:
    """Log moment of the whole, and upper bounds of the tilted masses of the sums from grid index ``start``."""
    doublings = math.log2(size)
    log_moment = 0.0
    product = np.ones(size // 2 + 1, dtype=np.complex128)
    log_bound, relative = np.zeros(size // 2 + 1), np.zeros(size // 2 + 1)
    for losses, count in parts:
        moment, weights = _tilt(losses, order)
        folded: Array = np.bincount(losses.indices % size, weights=weights, minlength=size).astype(float)
        spectrum = rfft(folded)
        error = _TRANSFORM_ERROR * doublings * _norm(folded) * math.sqrt(size)
        largest = np.abs(spectrum) + error
        product *= _power(spectrum, count)
        log_bound += count * np.log(largest)
        relative += count * (error / largest + 4 * UNIT)
        log_moment += count * moment
    with np.errstate(under="ignore"):
        bound = np.exp(log_bound) * relative
    size_norm = _norm(np.abs(product)) * math.sqrt(2)
    noise = 2 * float(np.sum(bound)) / size + _TRANSFORM_ERROR * doublings * size_norm / math.sqrt(size)
    sums = np.roll(irfft(product, size), -start % size)
    return log_moment, np.maximum(sums, 0.0) + noise


def _tilt(losses: Losses, order: float) -> tuple[float, Array]:
    """Log moment, and masses times e^(order * loss - log moment), rounded up."""
    tilted = order * losses.values()
    exponent = losses.log_masses + tilted
    moment = float(logsumexp(exponent))
    slack = 4 * UNIT * (1 + abs(moment) + np.abs(tilted) + np.abs(losses.log_masses))
    return moment, np.exp(exponent - moment) * (1 + slack)


def _norm(values: Array) -> float:
    return math.sqrt(float(np.sum(values * values)))  # numpy's own norm starts the threads of a BLAS


def _power(values: NDArray[np.complex128], count: int) -> NDArray[np.complex128]:
    """Repeated squaring: faster than a complex power, and its rounding grows in proportion to the count."""
    result: NDArray[np.complex128] | None = None
    while count:
        if count & 1:
            result = values.copy() if result is None else result * values
        count >>= 1
        if count:
            values = values * values
    return np.ones_like(values) if result is None else result
