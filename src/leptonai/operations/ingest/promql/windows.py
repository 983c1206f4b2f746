"""Functions of one series over a sliding window: rate and its kin, and ``*_over_time``.

Windows are closed on both sides, [t - range, t], as in Prometheus 2 (source: promql/functions.go, v2.42).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.int64]
Floats = NDArray[np.float64]

_EXTRAPOLATE_WITHIN = 1.1
"""Prometheus extends a rate to its window's edge if that is nearer than 1.1 average gaps, else half a gap."""


def over_windows(
    name: str, times_ms: Times, values: Floats, at_ms: Times, range_ms: int, parameter: float = 0.0
) -> tuple[Floats, NDArray[np.bool_]]:
    """A range function at each evaluation time.

    Args:
        name: such as ``rate``.
        times_ms, values: the samples, without staleness markers.
        at_ms: evaluation times (offset already taken off).
        range_ms: of the window.
        parameter: of ``quantile_over_time``.

    Returns:
        values, and where there is one.
    """
    low = np.searchsorted(times_ms, at_ms - range_ms, side="left")
    high = np.searchsorted(times_ms, at_ms, side="right")
    out = np.zeros(len(at_ms))
    with np.errstate(all="ignore"):
        if name in ("rate", "increase", "delta"):
            return _extrapolated(name, times_ms, values, at_ms, range_ms, low, high)
        if name in ("irate", "idelta"):
            return _instant(name, times_ms, values, low, high)
        present = high - low >= (2 if name == "deriv" else 1)
        act = _FUNCTIONS[name]
        for column in np.flatnonzero(present):
            window = slice(low[column], high[column])
            out[column] = act(times_ms[window], values[window], parameter)
    return out, present


def _extrapolated(
    name: str, times_ms: Times, values: Floats, at_ms: Times, range_ms: int, low: Times, high: Times
) -> tuple[Floats, NDArray[np.bool_]]:
    present = high - low >= 2
    out = np.zeros(len(at_ms))
    if not present.any():
        return out, present
    first, last, at = low[present], high[present] - 1, at_ms[present]
    change = values[last] - values[first]
    if name != "delta":  # a counter that fell was reset to zero: what it had reached is added
        falls = np.zeros(len(values))
        falls[1:] = np.where(values[1:] < values[:-1], values[:-1], 0.0)
        summed = np.cumsum(falls)
        if np.isfinite(summed[-1]):
            change = change + (summed[last] - summed[first])
        else:
            change = change + np.array([falls[a + 1 : b + 1].sum() for a, b in zip(first, last, strict=True)])
    to_start = (times_ms[first] - (at - range_ms)) / 1000.0
    to_end = (at - times_ms[last]) / 1000.0
    sampled = (times_ms[last] - times_ms[first]) / 1000.0
    gap = sampled / (last - first)
    if name != "delta":  # a counter never was below zero
        to_zero = sampled * (values[first] / change)
        can = (change > 0) & (values[first] >= 0) & (to_zero < to_start)
        to_start = np.where(can, to_zero, to_start)
    limit = gap * _EXTRAPOLATE_WITHIN
    span = sampled + np.where(to_start < limit, to_start, gap / 2) + np.where(to_end < limit, to_end, gap / 2)
    factor = span / sampled
    if name == "rate":
        factor = factor / (range_ms / 1000.0)
    out[present] = change * factor
    return out, present


def _instant(
    name: str, times_ms: Times, values: Floats, low: Times, high: Times
) -> tuple[Floats, NDArray[np.bool_]]:
    present = high - low >= 2
    out = np.zeros(len(low))
    last = high[present] - 1
    change = values[last] - values[last - 1]
    if name == "irate":
        change = np.where(values[last] < values[last - 1], values[last], change)
        change = change / ((times_ms[last] - times_ms[last - 1]) / 1000.0)
    out[present] = change
    return out, present


def quantile(share: float, values: Floats) -> float:
    """Prometheus' quantile: interpolated between ranks; -Inf or +Inf outside [0, 1], NaN sorts first.

    >>> quantile(0.5, np.array([1.0, 2.0]))
    1.5
    """
    if not len(values) or np.isnan(share):
        return float("nan")
    if share < 0 or share > 1:
        return float("-inf") if share < 0 else float("inf")
    order = np.concatenate([values[np.isnan(values)], np.sort(values[~np.isnan(values)])])
    rank = share * (len(order) - 1)
    below = int(np.floor(rank))
    weight = rank - below
    above = min(below + 1, len(order) - 1)
    return float(order[below] * (1 - weight) + order[above] * weight)


def _deriv(times_ms: Times, values: Floats, _: float) -> float:
    if (values == values[0]).all():
        return float("nan") if np.isinf(values[0]) else 0.0
    x = (times_ms - times_ms[0]) / 1000.0
    covariance = (x * values).sum() - x.sum() * values.sum() / len(x)
    return float(covariance / ((x * x).sum() - x.sum() ** 2 / len(x)))


def _extreme(pick: Callable[..., np.float64]) -> Callable[[Times, Floats, float], float]:
    return lambda _, values, __: float(pick(values))


def _changes(_: Times, values: Floats, __: float) -> float:
    differs = (values[1:] != values[:-1]) & ~(np.isnan(values[1:]) & np.isnan(values[:-1]))
    return float(differs.sum())


_FUNCTIONS: Mapping[str, Callable[[Times, Floats, float], float]] = MappingProxyType(
    {
        "deriv": _deriv,
        "changes": _changes,
        "resets": lambda _, values, __: float((values[1:] < values[:-1]).sum()),
        "avg_over_time": lambda _, values, __: float(values.mean()),
        "sum_over_time": lambda _, values, __: float(values.sum()),
        "min_over_time": _extreme(np.fmin.reduce),
        "max_over_time": _extreme(np.fmax.reduce),
        "count_over_time": lambda _, values, __: float(len(values)),
        "last_over_time": lambda _, values, __: float(values[-1]),
        "present_over_time": lambda _, values, __: 1.0,
        "stddev_over_time": lambda _, values, __: float(values.std()),
        "stdvar_over_time": lambda _, values, __: float(values.var()),
        "quantile_over_time": lambda _, values, share: quantile(share, values),
    }
)
