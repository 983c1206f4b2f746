"""Series by number and by label: which exist, and which fulfil a set of matchers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from leptonai.operations.series import Series
from leptonai.operations.store.matchers import Matcher


class LabelIndex:
    """Numbers for series, handed out in order and never again for another series."""

    def __init__(self) -> None:
        self._series: list[Series | None] = []
        self._ids: dict[Series, int] = {}
        self._postings: dict[str, dict[str, set[int]]] = {}
        self._forgotten: list[int] = []
        self._gone = np.empty(0, np.int64)
        """The forgotten ones sorted, as far as :meth:`known` has looked."""

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def num_ids(self) -> int:
        """Numbers handed out, those of forgotten series among them."""
        return len(self._series)

    def find(self, series: Series) -> int | None:
        """The number of a series; None: it is not known."""
        return self._ids.get(series)

    def get(self, series_id: int) -> Series | None:
        """The series of a number; None: it was forgotten, or never was."""
        return self._series[series_id] if 0 <= series_id < len(self._series) else None

    def known(self, ids: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Which of the numbers are those of a series."""
        there = (ids >= 0) & (ids < len(self._series))
        if not self._forgotten:
            return there
        if len(self._gone) < len(self._forgotten):
            self._gone = np.sort(np.array(self._forgotten, np.int64))
        places = np.minimum(np.searchsorted(self._gone, ids), len(self._gone) - 1)
        still: NDArray[np.bool_] = there & (self._gone[places] != ids)
        return still

    def live(self) -> list[int]:
        """The numbers of all series, in no order."""
        return list(self._ids.values())

    def add(self, series: Series) -> int:
        """Give a series that is not known the next number."""
        number = len(self._series)
        self._series.append(series)
        self._ids[series] = number
        for name, value in series.labels:
            self._postings.setdefault(name, {}).setdefault(value, set()).add(number)
        return number

    def forget(self, series_id: int) -> None:
        """Take a series out; its number stays used."""
        series = self._series[series_id]
        if series is None:
            return
        self._series[series_id] = None
        self._forgotten.append(series_id)
        del self._ids[series]
        for name, value in series.labels:
            holders = self._postings[name][value]
            holders.discard(series_id)
            if not holders:
                del self._postings[name][value]
                if not self._postings[name]:
                    del self._postings[name]

    def select(self, matchers: Sequence[Matcher]) -> list[int]:
        """Numbers of the series that fulfil all matchers, ascending; no matchers: of all.

        >>> index = LabelIndex()
        >>> number = index.add(Series.of("up", node="a")), index.add(Series.of("up", node="b"))
        >>> index.select([Matcher("node", "!~", "b|c"), Matcher("__name__", "=", "up")])
        [0]
        """
        found: set[int] | None = None
        # Equalities first: they leave the least for the others to be cut with.
        for matcher in sorted(matchers, key=lambda each: each.op != "=" or not each.value):
            fitting = self._fitting(matcher)
            found = fitting if found is None else found & fitting
            if not found:
                return []
        return sorted(set(self._ids.values()) if found is None else found)

    def _fitting(self, matcher: Matcher) -> set[int]:
        values = self._postings.get(matcher.name, {})
        if matcher.op == "=" and matcher.value:
            return set(values.get(matcher.value, ()))
        if not matcher.accepts(""):
            return set().union(*(ids for value, ids in values.items() if matcher.accepts(value)))
        # A series without the label counts as one with the empty value.
        unfit: set[int] = set().union(*(ids for value, ids in values.items() if not matcher.accepts(value)))
        return set(self._ids.values()) - unfit

    def names(self) -> list[str]:
        """Of all labels, sorted."""
        return sorted(self._postings)

    def values(self, name: str) -> list[str]:
        """Of one label, sorted."""
        return sorted(self._postings.get(name, {}))
