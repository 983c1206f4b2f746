"""Smooth curves of time by size through a few measurements, each with how far it misses what it did not see."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError

Floats = NDArray[np.float64]

HALF_SIZE = 8.0
"""Prior of the dim at which a kernel reaches half its rate: the width of a vector register in float32."""
HALF_SIZE_SPREAD = 1.5
"""Of that prior, in natural logarithms: anything from 2 to 40 is usual."""
FIT_SCALE = 0.1
"""Residuals in log seconds beyond which a sample counts ever less: a tenth is how timings on a shared machine vary."""
RIPPLE = 0.3
"""Standard deviation of log rates about the smooth law: choices of kernel and blocking, which no law knows."""
RIPPLE_OCTAVES = 1.2
"""Distance over which such a choice holds: blocking changes with the doubling of a size."""
NOISE = 0.05
"""Of one measured log rate."""
UNKNOWN_ERROR = 0.5
"""Relative error where too little was measured to know."""
CALL_SECONDS = 3e-6
"""Prior of a kernel's call itself: frameworks on CPUs take one to ten microseconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A time and its relative error, one standard deviation."""

    seconds: float
    error: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductCurve:
    """Time of a kernel whose rate depends on each of its dims.

    ``seconds = call + flops / peak * product(1 + half_i / dim_i)``, times a ripple that fades to 1 away from what
    was measured: each dim much below its half size wastes vector lanes, blocks or threads. The law grows with
    every dim; the ripple may bend that a little, as real kernels do. Never faster than ``best_rate``.

    Args:
        call_seconds: of a call that computes nothing.
        peak: FLOP/s far above all half sizes.
        halves: by dim.
        best_rate: the best FLOP/s that was measured.
        error: typical relative error at sizes left out of the fit.
        ripple: standard deviation of log times about the smooth law.
        sizes: log2 of the dims measured, (samples, dims).
        weights: of the samples in the ripple.
    """

    call_seconds: float
    peak: float
    halves: tuple[float, ...]
    best_rate: float
    error: float
    ripple: float
    sizes: Floats
    weights: Floats

    def seconds(self, dims: Sequence[float], flops: float) -> Timed:
        """Time of one call.

        Args:
            dims: > 0, as many as were measured.
            flops: of the call.
        """
        values = np.maximum(np.asarray(dims, np.float64), 1.0)
        law = self.call_seconds + flops / self.peak * float(np.prod(1.0 + np.asarray(self.halves) / values))
        near = _nearness(np.log2(values)[None, :], self.sizes)[0]
        rippled = law * math.exp(float(near @ self.weights))
        # Far from every sample the ripple is not known.
        far = 1.0 - float(near.max(initial=0.0))
        error = math.hypot(self.error, far * self.ripple)
        return Timed(seconds=max(rippled, flops / self.best_rate), error=error)


def fit_products(
    dims: Sequence[Sequence[float]], flops: Sequence[float], seconds: Sequence[float]
) -> ProductCurve:
    """The curve through these measurements, one row a sample.

    Robust least squares on log seconds with priors on the half sizes, then a Gaussian process on what is left;
    its error is the median leave-one-out residual, by Dubrule's closed form.

    Source: Rasmussen & Williams 2006, Gaussian Processes for Machine Learning, eq. 2.25 and 5.12.

    Raises:
        InputError: there is no sample.
    """
    if not len(seconds):
        raise InputError("a curve needs at least one measurement")
    from scipy.optimize import least_squares

    d, f, log_t = np.asarray(dims, np.float64), np.asarray(flops, np.float64), np.log(np.asarray(seconds))
    best = float(np.max(f / np.exp(log_t)))
    call = min(CALL_SECONDS, float(np.exp(log_t.min())) / 2)
    prior = np.log(np.concatenate([[call, best], np.full(d.shape[1], HALF_SIZE)]))
    spread = np.concatenate([[HALF_SIZE_SPREAD, 1.0], np.full(d.shape[1], HALF_SIZE_SPREAD)])

    def law(x: Floats) -> Floats:
        whole = np.exp(x[0]) + f / np.exp(x[1]) * np.prod(1.0 + np.exp(x[2:]) / d, axis=1)
        return cast(Floats, np.log(whole))

    def misses(x: Floats) -> Floats:
        return np.concatenate([(law(x) - log_t) / FIT_SCALE, (x - prior) / spread])

    low, high = np.full(len(prior), -np.inf), np.full(len(prior), np.inf)
    high[0] = log_t.min()  # a call that computes something takes no less
    x = least_squares(misses, np.clip(prior, low, high - 1e-9), bounds=(low, high), loss="soft_l1").x
    left = log_t - law(x)
    sizes = np.log2(np.maximum(d, 1.0))
    inverse = np.linalg.inv(RIPPLE**2 * _nearness(sizes, sizes) + NOISE**2 * np.eye(len(left)))
    weights = RIPPLE**2 * (inverse @ left)
    missed = (inverse @ left) / np.diag(inverse)
    few = len(left) < d.shape[1]
    return ProductCurve(
        call_seconds=float(np.exp(x[0])), peak=float(np.exp(x[1])), halves=tuple(map(float, np.exp(x[2:]))),
        best_rate=best, error=UNKNOWN_ERROR if few else float(np.median(np.abs(missed))),
        ripple=float(np.sqrt(np.mean(left**2))), sizes=sizes, weights=weights,
    )  # fmt: skip


def _nearness(sizes: Floats, others: Floats) -> Floats:
    """1 at the same size, falling to 0 over a few octaves."""
    squares = ((sizes[:, None, :] - others[None, :, :]) ** 2).sum(axis=2)
    return cast(Floats, np.exp(-0.5 * squares / RIPPLE_OCTAVES**2))


@dataclass(frozen=True, slots=True, kw_only=True)
class ByteCurve:
    """Time of a kernel that only passes over memory, by its bytes: straight lines between measured points in logs.

    Below the smallest size its time holds, since that is the call; above the largest its bandwidth does.

    Args:
        log_bytes: ascending.
        log_seconds: never falling.
        error: typical relative error between points.
    """

    log_bytes: Floats
    log_seconds: Floats
    error: float

    def seconds(self, num_bytes: float) -> Timed:
        """Time of one call."""
        size = math.log(max(num_bytes, 1.0))
        beyond = max(0.0, size - float(self.log_bytes[-1]))
        return Timed(
            seconds=math.exp(float(np.interp(size, self.log_bytes, self.log_seconds)) + beyond),
            error=self.error,
        )


def fit_bytes(num_bytes: Sequence[float], seconds: Sequence[float]) -> ByteCurve:
    """The curve through these measurements; several of one size count by their mean.

    Raises:
        InputError: there is no sample.

    >>> curve = fit_bytes([100.0, 10_000.0], [1e-6, 1e-5])
    >>> [f"{curve.seconds(size).seconds:.0e}" for size in (1.0, 1000.0, 20_000.0)]
    ['1e-06', '3e-06', '2e-05']
    """
    if not len(seconds):
        raise InputError("a curve needs at least one measurement")
    sizes, log_seconds = np.log(np.asarray(num_bytes, np.float64)), np.log(np.asarray(seconds, np.float64))
    points = np.unique(sizes)
    means = np.array([log_seconds[sizes == point].mean() for point in points])
    rising = np.maximum.accumulate(means)
    missed = [
        abs(float(np.interp(points[i], np.delete(points, i), np.delete(rising, i))) - rising[i])
        for i in range(1, len(points) - 1)
    ]
    error = (
        float(np.median(missed)) / 2 if missed else UNKNOWN_ERROR
    )  # points left out lie twice as far apart
    return ByteCurve(log_bytes=points, log_seconds=rising, error=error)
