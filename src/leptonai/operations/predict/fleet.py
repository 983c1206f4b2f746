"""A fleet's failures as a whole: lives by Weibull curves, and the units that fail more than luck explains."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from leptonai.core.errors import InputError
from leptonai.operations.predict.history import Floats, History
from leptonai.operations.predict.tables import base_name

LEMON_FACTOR = 2.0
"""A lemon fails more than this many times as often as the fleet's mean unit."""
LEMON_CHANCE = 0.95
"""How sure it must be."""
_LEVEL = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class WeibullCurve:
    """Lives of a fleet: the share still working at age t is exp(-(t / scale) ** shape).

    Args:
        shape: below 1 the young fail (infant mortality), about 1 failures come at random, above 1 wear.
        shape_low, shape_high: 95 % interval.
        scale: age by which 63 % have failed.
        mean_life: mean time to failure, in the history's unit of time.
        mean_low, mean_high: 95 % interval.
        num_lives, num_failures: what it was fitted on.
    """

    shape: float
    shape_low: float
    shape_high: float
    scale: float
    mean_life: float
    mean_low: float
    mean_high: float
    num_lives: int
    num_failures: int

    def working(self, age: float) -> float:
        """The share that still works at this age."""
        return math.exp(-((age / self.scale) ** self.shape))


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitRate:
    """How often one unit fails, as far as that can be said.

    Args:
        num_failures, exposure: seen failures, and time watched.
        rate: expected failures per unit of time, drawn towards the fleet's mean by as much as its history is short.
        lemon_chance: of failing more than ``LEMON_FACTOR`` times as often as the mean unit.
        is_lemon: the chance is at least ``LEMON_CHANCE``.
    """

    unit: str
    num_failures: int
    exposure: float
    rate: float
    lemon_chance: float
    is_lemon: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """A fleet's statistics.

    Args:
        lives: None: fewer than two failures, so there is no curve to speak of.
        mean_rate: failures per unit of time over all.
        varies: how much rates differ between units, as a coefficient of variation; 0: not more than luck explains.
        units: the likeliest lemon first.
    """

    lives: WeibullCurve | None
    mean_rate: float
    varies: float
    units: tuple[UnitRate, ...]


def fleet_of(history: History) -> Fleet:
    """The statistics of all units of a history.

    Raises:
        InputError: no unit was watched for any time.
    """
    lives = np.array([unit.times_T[-1] - unit.times_T[0] for unit in history.units])
    failed = np.array([unit.failed for unit in history.units])
    names: dict[str, int] = {}
    at = np.array([names.setdefault(base_name(unit.name), len(names)) for unit in history.units])
    exposure_U, count_U = np.bincount(at, lives).astype(float), np.bincount(at, failed).astype(int)
    if exposure_U.sum() <= 0:
        raise InputError(
            "no unit of the history was watched for any time", hint="each needs two samples or more"
        )
    mean, varies, units = unit_rates(list(names), count_U, exposure_U)
    positive = lives > 0
    enough = (failed & positive).sum() >= 2
    return Fleet(
        lives=fit_weibull(lives[positive], failed[positive]) if enough else None,
        mean_rate=mean,
        varies=varies,
        units=units,
    )


def fit_weibull(lives_N: Floats, failed_N: NDArray[np.bool_]) -> WeibullCurve:
    """The curve of greatest likelihood; lives without a failure count as at least that long.

    Intervals are Wald's on logarithms of shape and mean life, from the observed information.

    Raises:
        InputError: fewer than two failures, or a life that is not positive.

    >>> lives = 100 * np.random.default_rng(1).weibull(2.0, 400)
    >>> found = fit_weibull(np.minimum(lives, 120), lives <= 120)
    >>> round(found.shape, 1), found.shape_low < 2 < found.shape_high, found.mean_low < 88.6 < found.mean_high
    (2.0, True, True)
    """
    num = int(failed_N.sum())
    if num < 2 or not (lives_N > 0).all():
        raise InputError(f"a Weibull curve needs two failures and positive lives, found {num} failure(s)")
    unit = float(lives_N.mean())
    log_N = np.log(lives_N / unit)

    def minus_log_likelihood(at: Floats) -> float:
        shape, log_scale = math.exp(at[0]), at[1]
        z_N = shape * (log_N - log_scale)
        return float(np.exp(z_N).sum() - (failed_N * (z_N + at[0])).sum())

    start = np.array([0.0, math.log(len(lives_N) / num)])
    bounds = ((-5.0, 5.0), (-20.0, 20.0))
    best = optimize.minimize(minus_log_likelihood, start, method="L-BFGS-B", bounds=bounds).x
    covariance = np.linalg.pinv(_curvature(minus_log_likelihood, best))
    shape, scale = math.exp(best[0]), unit * math.exp(best[1])
    mean = scale * math.gamma(1 + 1 / shape)
    slope = np.array([-special.digamma(1 + 1 / shape) / shape, 1.0])  # of log(mean) by log(shape), log(scale)
    z = float(stats.norm.ppf((1 + _LEVEL) / 2))
    wide_shape = z * math.sqrt(max(covariance[0, 0], 0.0))
    wide_mean = z * math.sqrt(max(float(slope @ covariance @ slope), 0.0))
    return WeibullCurve(
        shape=shape, shape_low=shape * math.exp(-wide_shape), shape_high=shape * math.exp(wide_shape),
        scale=scale, mean_life=mean, mean_low=mean * math.exp(-wide_mean), mean_high=mean * math.exp(wide_mean),
        num_lives=len(lives_N), num_failures=num,
    )  # fmt: skip


def unit_rates(
    names: Sequence[str], count_U: NDArray[np.intp], exposure_U: Floats
) -> tuple[float, float, tuple[UnitRate, ...]]:
    """The fleet's mean rate, the coefficient of variation of rates between units, and each unit's rate.

    Counts are Poisson given a unit's rate, rates are gamma over the fleet; the gamma is the one of greatest
    likelihood (empirical Bayes), so a unit's rate is drawn to the mean by as much as its own history is short.

    Source: Gaver & O'Muircheartaigh 1987.

    >>> mean, varies, units = unit_rates([*"abcdefgh"], np.array([1, 0, 1, 9, 0, 1, 0, 2]), np.full(8, 100.0))
    >>> units[0].unit, units[0].is_lemon, units[1].is_lemon
    ('d', True, False)
    """
    mean = float(count_U.sum() / exposure_U.sum())
    if mean == 0:
        rates = [
            UnitRate(
                unit=name, num_failures=0, exposure=float(time), rate=0.0, lemon_chance=0.0, is_lemon=False
            )
            for name, time in zip(names, exposure_U, strict=True)
        ]
        return 0.0, 0.0, tuple(rates)
    expected_U = mean * exposure_U

    def minus_log_likelihood(log_shape: float) -> float:
        shape = math.exp(log_shape)
        return -float(stats.nbinom.logpmf(count_U, shape, shape / (shape + expected_U)).sum())

    # A fleet of alike units has an endless shape; nothing is told apart beyond a variation of about a thirtieth.
    found = optimize.minimize_scalar(
        minus_log_likelihood, bounds=(math.log(0.02), math.log(1000.0)), method="bounded"
    )
    shape = math.exp(found.x)
    posterior = stats.gamma(shape + count_U, scale=1 / (shape / mean + exposure_U))
    chance_U = posterior.sf(LEMON_FACTOR * mean)
    order = np.lexsort((-count_U, -chance_U))
    units = tuple(
        UnitRate(
            unit=names[at],
            num_failures=int(count_U[at]),
            exposure=float(exposure_U[at]),
            rate=float(posterior.mean()[at]),
            lemon_chance=float(chance_U[at]),
            is_lemon=bool(chance_U[at] >= LEMON_CHANCE),
        )
        for at in order
    )
    return mean, 0.0 if shape > 900 else 1 / math.sqrt(shape), units


def _curvature(function: Callable[[Floats], float], at: Floats) -> Floats:
    """Second derivatives by central differences."""
    step = 1e-4
    size = len(at)
    made = np.empty((size, size))
    for row in range(size):
        for column in range(size):
            total = 0.0
            for up in (1, -1):
                for right in (1, -1):
                    moved = at.astype(float).copy()
                    moved[row] += up * step
                    moved[column] += right * step
                    total += up * right * function(moved)
            made[row, column] = total / (4 * step * step)
    return made
