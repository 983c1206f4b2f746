"""Causal features of a unit: for every sample, numbers made of that sample and earlier ones only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from leptonai.operations.predict.conditions import Conditions, fit_conditions
from leptonai.operations.predict.history import Floats, History, Unit

WINDOW_SHARES = (0.025, 0.075, 0.15)
"""Windows as shares of the median number of samples of a unit: 5, 15 and 30 of 200, which suit turbofan engines."""
SLOPE_FACTORS = (1, 2)
"""Slopes over one and two of the longest window: shorter ones are mostly noise."""
LONGEST_WINDOW = 1000
AGE = "age"
"""The name under which operating time counts as a signal."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Features:
    """What is computed from a unit, fitted on training units.

    Args:
        conditions: makes readings comparable.
        kept: columns of the signals that vary within conditions.
        gappy: those of ``kept`` with missing readings in training; only their gaps are counted.
        windows: samples, short to long.
        signal_names: of all signals.
    """

    conditions: Conditions
    kept: tuple[int, ...]
    gappy: tuple[int, ...]
    windows: tuple[int, ...]
    signal_names: tuple[str, ...]

    @property
    def num_needed(self) -> int:
        """Samples below which a unit has not enough history: one middle window."""
        return self.windows[1]

    def columns(self) -> tuple[tuple[str, str], ...]:
        """(signal, what is computed of it) of every feature, in order."""
        names = [self.signal_names[at] for at in self.kept]
        kinds = [f"mean of {window}" for window in self.windows]
        kinds += ["recent level", "mean so far", "change since start"]
        kinds += [f"slope over {factor * self.windows[-1]}" for factor in SLOPE_FACTORS]
        gaps = [(self.signal_names[at], "missing") for at in self.gappy]
        return ((AGE, "time"), *((name, kind) for kind in kinds for name in names), *gaps)

    def readings(self, unit: Unit) -> Floats:
        """Standardised readings (T, kept); NaN where missing."""
        return self.conditions.standardised(unit)[:, list(self.kept)]

    def of_unit(self, unit: Unit) -> Floats:
        """The features (T, F) of every sample; row t depends on samples 0 to t only."""
        z_TS = self.readings(unit)
        sums = _Sums(z_TS)
        means = [sums.mean(window) for window in self.windows]
        start = sums.first(self.windows[1])
        columns = [(unit.times_T - unit.times_T[0])[:, None], *means, _recent(z_TS, self.windows[-1])]
        columns += [sums.mean(unit.num_samples), means[1] - start]
        columns += [sums.slope(factor * self.windows[-1]) for factor in SLOPE_FACTORS]
        if self.gappy:
            gone_TS = np.isnan(unit.signals_TS[:, list(self.gappy)]).astype(float)
            columns.append(_Sums(gone_TS).mean(self.windows[-1]))
        return np.hstack(columns)


def fit_features(history: History, *, seed: int, windows: tuple[int, int, int] | None = None) -> Features:
    """Features for units like those of the history.

    Args:
        windows: short to long, in samples; None: shares of the median number of samples.
    """
    conditions = fit_conditions(history.units, seed=seed)
    kept = tuple(int(at) for at in np.flatnonzero(conditions.spread_KS.max(0) > 0))
    gone_S = np.any([np.isnan(unit.signals_TS).any(0) for unit in history.units], axis=0)
    return Features(
        conditions=conditions,
        kept=kept,
        gappy=tuple(at for at in kept if gone_S[at]),
        windows=windows or _windows(history),
        signal_names=history.signal_names,
    )


def _windows(history: History) -> tuple[int, ...]:
    typical = float(np.median([unit.num_samples for unit in history.units]))
    windows, least = [], 2
    for share in WINDOW_SHARES:
        windows.append(min(max(least, round(share * typical)), LONGEST_WINDOW))
        least = windows[-1] + 1
    return tuple(windows)


class _Sums:
    """Running sums over the readings that are there, so that any window costs two look-ups."""

    def __init__(self, z_TS: Floats) -> None:
        there_TS = np.isfinite(z_TS)
        value_TS = np.where(there_TS, z_TS, 0.0)
        self._at_T = np.arange(1, len(z_TS) + 1)
        time_T1 = self._at_T[:, None].astype(float)
        self._num, self._sum = _running(there_TS.astype(float)), _running(value_TS)
        self._time = _running(there_TS * time_T1)
        self._square, self._cross = _running(there_TS * time_T1**2), _running(value_TS * time_T1)

    def mean(self, window: int) -> Floats:
        """Over the last ``window`` samples; NaN where all are missing."""
        num, total = self._last(self._num, window), self._last(self._sum, window)
        return _ratio(total, num)

    def first(self, window: int) -> Floats:
        """The mean of the first ``window`` samples, or of those that there are yet."""
        at = np.minimum(self._at_T, window)
        return _ratio(self._sum[at], self._num[at])

    def slope(self, window: int) -> Floats:
        """Of the least-squares line through the last ``window`` samples, per sample; 0 for fewer than three."""
        num, time = self._last(self._num, window), self._last(self._time, window)
        inner = self._last(self._cross, window) - _ratio(time, num, 0.0) * self._last(self._sum, window)
        spread = self._last(self._square, window) - _ratio(time**2, num, 0.0)
        return np.where(num >= 3, inner / np.where(num >= 3, spread, 1.0), 0.0)

    def _last(self, running: Floats, window: int) -> Floats:
        return np.asarray(running[self._at_T] - running[np.maximum(self._at_T - window, 0)])


def _running(values_TS: Floats) -> Floats:
    return np.vstack([np.zeros(values_TS.shape[1]), np.cumsum(values_TS, 0)])


def _ratio(over: Floats, under: Floats, otherwise: float = np.nan) -> Floats:
    return np.where(under > 0, over / np.where(under > 0, under, 1.0), otherwise)


def _recent(z_TS: Floats, window: int) -> Floats:
    """Exponentially weighted mean of the readings that are there, remembering about ``window`` samples."""
    keep = 1 - 1 / window
    made = np.empty_like(z_TS)
    there_TS = np.isfinite(z_TS)
    value_TS = np.where(there_TS, z_TS, 0.0)
    weight, total = np.zeros(z_TS.shape[1]), np.zeros(z_TS.shape[1])
    for at in range(len(z_TS)):
        weight = keep * weight + there_TS[at]
        total = keep * total + value_TS[at]
        made[at] = _ratio(total, weight)
    return made


def stacked(features: Features, units: Sequence[Unit]) -> list[Floats]:
    """The features of several units."""
    return [features.of_unit(unit) for unit in units]
