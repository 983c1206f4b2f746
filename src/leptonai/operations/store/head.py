"""Samples that wait in memory to be cut into chunks, and the judgement on what may join them.

Columns of all series together, in the order of arrival; sorted by series and time only where someone reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonai.operations.store.limits import Appended, StoreLimits

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

NEVER = -(1 << 62)
"""Before every time, in milliseconds; differences with real times still fit 64 bits."""
_FIRST_CAPACITY = 4096
_UNSORTED_LIMIT = 1 << 16
"""Samples after the sorted ones that a reader still searches as they lie."""


@dataclass(frozen=True, slots=True, eq=False)
class Sorted:
    """Samples by series, then time."""

    ids: NDArray[np.int32]
    times_ms: Ints
    values: Floats

    def of(self, series_id: int) -> tuple[Ints, Floats]:
        """The times and values of one series."""
        low, high = np.searchsorted(self.ids, [series_id, series_id + 1])
        return self.times_ms[low:high], self.values[low:high]


class Head:
    """What waits. Not safe to use from several threads."""

    def __init__(self, limits: StoreLimits) -> None:
        self._window_ms = limits.out_of_order_seconds * 1000
        self._future_ms = limits.future_seconds * 1000
        self._keep_ms = limits.raw.age_seconds * 1000
        self._newest: Ints = np.full(0, NEVER, np.int64)
        self._floor: Ints = np.full(0, NEVER, np.int64)
        self._set(np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0))
        self.newest_ms = NEVER

    def _set(self, ids: NDArray[np.int32], times_ms: Ints, values: Floats) -> None:
        self.size = len(ids)
        self._ids, self._times, self._values = ids, times_ms, values
        self._sorted: Sorted | None = None
        self._num_sorted = 0

    def make_room(self, num_ids: int) -> None:
        """For series up to that number."""
        if num_ids > len(self._newest):
            more = np.full(max(num_ids, 2 * len(self._newest)) - len(self._newest), NEVER, np.int64)
            self._newest = np.concatenate([self._newest, more])
            self._floor = np.concatenate([self._floor, more])

    def raise_floor(self, ids: Ints, times_ms: Ints) -> None:
        """Samples of these series up to these times are in chunks: nothing more is let in there."""
        self.make_room(int(ids.max(initial=-1)) + 1)
        np.maximum.at(self._floor, ids, times_ms)
        np.maximum.at(self._newest, ids, times_ms)
        self.newest_ms = max(self.newest_ms, int(times_ms.max(initial=NEVER)))

    def newest_of(self, series_id: int) -> int:
        """The newest time of a series, waiting or in chunks; :data:`NEVER`: it has none."""
        return int(self._newest[series_id]) if series_id < len(self._newest) else NEVER

    def judge(
        self, ids: Ints, times_ms: Ints, values: Floats, known: Mask, *, now_ms: int | None
    ) -> tuple[Mask, Appended]:
        """Which samples may join, and what is wrong with the others.

        Args:
            ids, times_ms, values: of the samples, in the order of arrival.
            known: whether there is such a series; unknown ones do not fit the columns.
            now_ms: wall time; None: do not look at it (what was let in once, comes from the log).
        """
        future = times_ms > now_ms + self._future_ms if now_ms is not None else np.zeros(len(ids), np.bool_)
        old = times_ms < now_ms - self._keep_ms if now_ms is not None else np.zeros(len(ids), np.bool_)
        accepted = known & ~future & ~old
        doubtful = self._doubtful(ids, times_ms, accepted)
        counts = dict.fromkeys(("num_out_of_order", "num_repeated", "num_duplicate"), 0)
        if len(doubtful):
            self._judge_each(ids, times_ms, values, doubtful, accepted, counts)
        return accepted, Appended(
            num_accepted=int(accepted.sum()),
            num_too_far_in_future=int((known & future).sum()),
            num_too_old=int((known & old & ~future).sum()),
            num_unknown_series=len(ids) - int(known.sum()),
            **counts,
        )

    def _doubtful(self, ids: Ints, times_ms: Ints, accepted: Mask) -> Ints:
        """Places of samples whose series has one here that is not simply its newest yet."""
        at = np.flatnonzero(accepted)
        at = at[np.argsort(ids[at], kind="stable")]
        own, when = ids[at], times_ms[at]
        first = np.concatenate([[True], own[1:] != own[:-1]])[: len(own)]
        before = np.where(first, self._newest[own], np.concatenate([[0], when[:-1]])[: len(own)])
        wrong = when <= before
        if not wrong.any():
            return np.empty(0, np.int64)
        flagged = np.zeros(len(self._newest), np.bool_)
        flagged[own[wrong]] = True
        return np.sort(at[flagged[own]])

    def _judge_each(
        self,
        ids: Ints,
        times_ms: Ints,
        values: Floats,
        doubtful: Ints,
        accepted: Mask,
        counts: dict[str, int],
    ) -> None:
        """Look at samples one by one, in the order of arrival; takes away from ``accepted``."""
        seen = self._waiting(ids[doubtful], int(times_ms[doubtful].min()))
        newest: dict[int, int] = {}
        words = values.view(np.int64)
        for at in doubtful.tolist():
            own, when, word = int(ids[at]), int(times_ms[at]), int(words[at])
            latest = newest.setdefault(own, int(self._newest[own]))
            if (own, when) in seen:
                counts["num_repeated" if seen[own, when] == word else "num_duplicate"] += 1
            elif when <= self._floor[own] or when < latest - self._window_ms:
                counts["num_out_of_order"] += 1
            else:
                seen[own, when] = word
                newest[own] = max(latest, when)
                continue
            accepted[at] = False

    def _waiting(self, ids: Ints, from_ms: int) -> dict[tuple[int, int], int]:
        wanted = np.zeros(len(self._newest), np.bool_)
        wanted[ids] = True
        own, when = self._ids[: self.size], self._times[: self.size]
        at = np.flatnonzero(when >= from_ms)
        at = at[wanted[own[at]]]
        words = self._values[at].view(np.int64)
        return dict(zip(zip(own[at].tolist(), when[at].tolist(), strict=True), words.tolist(), strict=True))

    def add(self, ids: Ints, times_ms: Ints, values: Floats) -> None:
        """Let samples in that :meth:`judge` accepted."""
        end = self.size + len(ids)
        if end > len(self._ids):
            self._grow(end)
        self._ids[self.size : end], self._times[self.size : end] = ids, times_ms
        self._values[self.size : end] = values
        self.size = end
        np.maximum.at(self._newest, ids, times_ms)
        self.newest_ms = max(self.newest_ms, int(times_ms.max(initial=NEVER)))

    def _grow(self, wanted: int) -> None:
        capacity = max(_FIRST_CAPACITY, 2 * len(self._ids), wanted)

        def grown(column: NDArray[Any]) -> NDArray[Any]:
            fresh = np.empty(capacity, column.dtype)
            fresh[: self.size] = column[: self.size]
            return fresh

        self._ids, self._times, self._values = grown(self._ids), grown(self._times), grown(self._values)

    def oldest_ms(self) -> int:
        """The oldest time that waits; the newest of all where nothing waits."""
        return int(self._times[: self.size].min(initial=self.newest_ms))

    def of(self, series_id: int) -> tuple[Ints, Floats]:
        """The waiting times and values of a series, ascending in time."""
        if self._sorted is None or self.size - self._num_sorted > _UNSORTED_LIMIT:
            self._sorted, self._num_sorted = self._sort(), self.size
        times, values = self._sorted.of(series_id)
        fresh = self._num_sorted + np.flatnonzero(self._ids[self._num_sorted : self.size] == series_id)
        if not len(fresh):
            return times, values
        times = np.concatenate([times, self._times[fresh]])
        values = np.concatenate([values, self._values[fresh]])
        order = np.argsort(times, kind="stable")
        return times[order], values[order]

    def _sort(self) -> Sorted:
        ids, times = self._ids[: self.size], self._times[: self.size]
        order = np.lexsort((times, ids))
        return Sorted(ids[order], times[order], self._values[order])

    def split(self, boundary_ms: int) -> tuple[Sorted, Sorted]:
        """What lies before a time, and what does not."""
        whole = self._sort()
        before = whole.times_ms < boundary_ms
        return tuple(  # type: ignore[return-value]
            Sorted(whole.ids[mask], whole.times_ms[mask], whole.values[mask]) for mask in (before, ~before)
        )

    def keep(self, rest: Sorted) -> None:
        """Let go of all but these."""
        self._set(rest.ids, rest.times_ms, rest.values)
