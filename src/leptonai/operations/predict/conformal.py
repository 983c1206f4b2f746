"""Intervals with a stated coverage, from the errors made on units that the model had not seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.operations.predict.history import Floats

GRID = 16
"""Predicted values at which the spread of errors is read; between them it is interpolated."""
NEIGHBOURS = 0.15
"""Share of all errors read at each grid point: 40 units' worth of 260."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Band:
    """Lower and upper error at predicted values, widened until the coverage holds on units left out."""

    at_G: Floats
    low_G: Floats
    high_G: Floats
    widen: float
    coverage: float

    def interval(self, predicted_N: Floats) -> tuple[Floats, Floats]:
        """Lower and upper ends, never below 0 nor crossing."""
        low_N, high_N = _read(self, predicted_N)
        middle_N = (low_N + high_N) / 2
        low_N, high_N = np.minimum(low_N - self.widen, middle_N), np.maximum(high_N + self.widen, middle_N)
        return np.maximum(predicted_N + low_N, 0), np.maximum(predicted_N + high_N, 0)


def fit_band(
    predicted_N: Floats,
    actual_N: Floats,
    unit_N: NDArray[np.intp],
    weights_N: Floats,
    *,
    coverage: float,
    seed: int,
) -> Band:
    """A band from predictions made out of fold, each unit's rows weighing the same together.

    Errors at similar predictions give the shape. For every half of the units the shape is then read from the other
    half, and the amount by which actual values leave it is what the final shape is widened by: the quantile of
    split conformal prediction, with units, not rows, as what is exchangeable, so its finite-sample correction
    counts units. Negative widening narrows.

    Source: Romano, Patterson & Candès 2019 (conformalised quantiles); Barber et al. 2021 (CV+).

    Raises:
        InputError: the coverage is not within (0, 1), or there are too few units for it.
    """
    if not 0 < coverage < 1:
        raise InputError(f"coverage: expected a number within (0, 1), found {coverage}")
    names = np.unique(unit_N)
    level = coverage * (1 + 1 / len(names))
    if level > 1 or len(names) < 4:
        raise InputError(
            f"{len(names)} failed units are too few for an interval of coverage {coverage:g}",
            hint="gather more history or ask for a lower coverage",
        )
    errors_N = actual_N - predicted_N
    halves = np.random.default_rng(seed).permutation(len(names)) % 2
    half_N = halves[np.searchsorted(names, unit_N)]
    leaves_N = np.empty(len(errors_N))
    for half in (0, 1):
        seen, held = half_N != half, half_N == half
        shape = _shape(predicted_N[seen], errors_N[seen], weights_N[seen], coverage)
        low_N, high_N = _read(shape, predicted_N[held])
        leaves_N[held] = np.maximum(low_N - errors_N[held], errors_N[held] - high_N)
    whole = _shape(predicted_N, errors_N, weights_N, coverage)
    widen = weighted_quantile(leaves_N, weights_N, [level])[0]
    return Band(
        at_G=whole.at_G, low_G=whole.low_G, high_G=whole.high_G, widen=float(widen), coverage=coverage
    )


def weighted_quantile(values_N: Floats, weights_N: Floats, levels: Sequence[float]) -> Floats:
    """The smallest values at or below which at least these shares of the weight lie.

    >>> weighted_quantile(np.array([3.0, 1.0, 2.0]), np.ones(3), [0.5, 1.0]).tolist()
    [2.0, 3.0]
    """
    order = np.argsort(values_N, kind="stable")
    below_N = np.cumsum(weights_N[order])
    at = np.searchsorted(below_N, np.asarray(levels) * below_N[-1] * (1 - 1e-12))
    return np.asarray(values_N[order][np.minimum(at, len(values_N) - 1)])


def _shape(predicted_N: Floats, errors_N: Floats, weights_N: Floats, coverage: float) -> Band:
    order = np.argsort(predicted_N, kind="stable")
    share_N = np.cumsum(weights_N[order]) / weights_N.sum()
    tail = (1 - coverage) / 2
    at, low, high = [], [], []
    for middle in np.linspace(NEIGHBOURS / 2, 1 - NEIGHBOURS / 2, GRID):
        near = order[(share_N >= middle - NEIGHBOURS / 2) & (share_N <= middle + NEIGHBOURS / 2)]
        if len(near) == 0:
            continue
        ends = weighted_quantile(errors_N[near], weights_N[near], [tail, 1 - tail])
        at.append(float(np.average(predicted_N[near], weights=weights_N[near])))
        low.append(float(ends[0]))
        high.append(float(ends[1]))
    return Band(at_G=np.array(at), low_G=np.array(low), high_G=np.array(high), widen=0.0, coverage=coverage)


def _read(band: Band, predicted_N: Floats) -> tuple[Floats, Floats]:
    return np.interp(predicted_N, band.at_G, band.low_G), np.interp(predicted_N, band.at_G, band.high_G)
