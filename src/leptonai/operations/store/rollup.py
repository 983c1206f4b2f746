"""Rows that stand for many samples: least, most, sum, count and last of each stretch of time; pure functions.

Rows of the same stretch can be joined again, so a coarser tier, a late part or a query's step all use the same
function. NaN samples count for nothing but ``last``.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Columns of equal length; ``times_ms`` holds when each stretch begins, ascending.

    ``counts`` are floats so that all columns are alike; a stretch of nothing but NaN has count 0 and NaN extremes.
    """

    times_ms: Ints
    minima: Floats
    maxima: Floats
    sums: Floats
    counts: Floats
    last: Floats

    @classmethod
    def of_samples(cls, times_ms: Ints, values: Floats) -> Rows:
        """Each sample as a row of its own."""
        there = ~np.isnan(values)
        return cls(
            times_ms, values, values, np.where(there, values, 0.0), there.astype(np.float64), values
        )  # fmt: skip

    def columns(self) -> tuple[Floats, ...]:
        """All but the times."""
        return (self.minima, self.maxima, self.sums, self.counts, self.last)

    def __len__(self) -> int:
        return len(self.times_ms)


def roll_up(rows: Rows, resolution_ms: int) -> Rows:
    """Rows joined into stretches that begin at multiples of ``resolution_ms``; ``rows`` ascend in time.

    >>> ten = Rows.of_samples(np.arange(10) * 1000, np.arange(10.0))
    >>> five = roll_up(ten, 5000)
    >>> five.maxima.tolist(), five.sums.tolist()
    ([4.0, 9.0], [10.0, 35.0])
    """
    if not len(rows):
        return rows
    starts = rows.times_ms - rows.times_ms % resolution_ms
    first = np.flatnonzero(np.concatenate([[True], starts[1:] != starts[:-1]]))
    last = np.append(first[1:], len(starts)) - 1
    with np.errstate(all="ignore"):
        return Rows(
            starts[first],
            np.fmin.reduceat(rows.minima, first),
            np.fmax.reduceat(rows.maxima, first),
            np.add.reduceat(rows.sums, first),
            np.add.reduceat(rows.counts, first),
            rows.last[last],
        )


def join(parts: list[Rows]) -> Rows:
    """Rows one after the other, sorted by time where they were not; of equal times the first part's come first."""
    if len(parts) == 1:
        return parts[0]
    if not parts:
        nothing = np.empty(0)
        return Rows(np.empty(0, np.int64), nothing, nothing, nothing, nothing, nothing)
    times = np.concatenate([part.times_ms for part in parts])
    columns = [np.concatenate(each) for each in zip(*(part.columns() for part in parts), strict=True)]
    if bool((times[1:] < times[:-1]).any()):
        order = np.argsort(times, kind="stable")
        times, columns = times[order], [column[order] for column in columns]
    return Rows(times, *columns)


def between(rows: Rows, start_ms: int, end_ms: int) -> Rows:
    """Those rows with start <= time <= end."""
    low = int(np.searchsorted(rows.times_ms, start_ms, "left"))
    high = int(np.searchsorted(rows.times_ms, end_ms, "right"))
    return Rows(rows.times_ms[low:high], *(column[low:high] for column in rows.columns()))


def lttb(times_ms: Ints, values: Floats, num_points: int) -> NDArray[np.int64]:
    """Which points to draw: the largest-triangle-three-buckets choice, first and last always among them.

    Args:
        times_ms: ascending.
        values: of them; NaN points are never the largest triangle.
        num_points: how many to keep, at least 3 (fewer points than that are all kept).

    Source: Steinarsson 2013, "Downsampling time series for visual representation", section 4.2.

    >>> lttb(np.arange(6), np.array([0.0, 0, 9, 0, 0, 0]), 3).tolist()
    [0, 2, 5]
    """
    if num_points >= len(times_ms) or num_points < 3:
        return np.arange(len(times_ms))
    edges = np.linspace(1, len(times_ms) - 1, num_points - 1).astype(np.int64)
    at = times_ms.astype(np.float64)
    chosen = [0]
    for bucket in range(num_points - 2):
        low, high = int(edges[bucket]), int(edges[bucket + 1])
        ahead = slice(high, int(edges[bucket + 2]) if bucket + 2 < len(edges) else len(at))
        next_at, next_value = float(at[ahead].mean()), _mean(values[ahead])
        base_at, base_value = at[chosen[-1]], values[chosen[-1]]
        area = np.abs(
            (base_at - next_at) * (values[low:high] - base_value)
            - (base_at - at[low:high]) * (next_value - base_value)
        )
        chosen.append(low + int(np.argmax(np.where(np.isnan(area), -1.0, area))))
    return np.array([*chosen, len(at) - 1])


def _mean(values: Floats) -> float:
    there = values[~np.isnan(values)]
    return float(there.mean()) if len(there) else 0.0
