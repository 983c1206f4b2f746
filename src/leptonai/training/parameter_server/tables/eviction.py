"""Which rows give way when a table is full: those that were least recently used."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# To find the oldest rows means to look at all; so many are found at once that it seldom has to be done.
_SHARE = 32


class LeastRecent:
    """The rows least recently used, exactly, at a cost that does not grow with the table.

    A search finds the oldest rows of that moment. As long as a found row's clock has not moved, it is older than
    every row the search left out, since clocks only rise.

    Args:
        clocks: of every slot, when its row was last used.
        touched: of every slot, whether it has a row.
    """

    def __init__(self, clocks: NDArray[np.int64], touched: NDArray[np.uint8]) -> None:
        self._clocks, self._touched = clocks, touched
        self._slots = np.zeros(0, np.int64)
        self._seen = np.zeros(0, np.int64)

    def take(self, count: int, allocated: int, *, now: int) -> NDArray[np.int64]:
        """The ``count`` oldest of the first ``allocated`` slots, but none used at ``now``; fewer if there are not
        so many. They are not given out again until they are used."""
        found = self._valid(now)
        if len(found) < count:
            self._search(max(count, allocated // _SHARE), allocated)
            found = self._valid(now)
        if len(found) < count:
            return found
        taken = found[:count]
        last = int(np.flatnonzero(self._slots == taken[-1])[0]) + 1
        self._slots, self._seen = self._slots[last:], self._seen[last:]
        return taken

    def _valid(self, now: int) -> NDArray[np.int64]:
        clocks = self._clocks[self._slots]
        found: NDArray[np.int64] = self._slots[
            (clocks == self._seen) & (clocks < now) & (self._touched[self._slots] != 0)
        ]
        return found

    def _search(self, count: int, allocated: int) -> None:
        clocks = np.where(self._touched[:allocated], self._clocks[:allocated], np.iinfo(np.int64).max)
        count = min(count, allocated)
        oldest = np.argpartition(clocks, count - 1)[:count]
        ordered = oldest[np.lexsort((oldest, clocks[oldest]))]
        self._slots, self._seen = ordered, clocks[ordered].copy()
