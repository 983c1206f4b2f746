"""What is new in the store, series by series, to the watches: detection runs here, beside the data."""

from __future__ import annotations

from collections.abc import Iterator

from leptonai.core.clock import Clock
from leptonai.operations.alarms import Alarm
from leptonai.operations.collector.node_watch import EXPECTED_GAP, UP, NodeWatch
from leptonai.operations.collector.series_watch import SeriesWatch
from leptonai.operations.detect.counters import is_counter_name
from leptonai.operations.detect.policy import Policy
from leptonai.operations.series import Series
from leptonai.operations.store import MetricsStore

LATE_SECONDS = 120.0
"""Samples that arrive later than this are kept, and are no news. Agents pack for seconds, Prometheus for a minute."""
MOST_SERIES = 4000
"""Watched at the same time: 340 MB. Further series are kept and not watched, and their number is told."""
FORGET_SECONDS = 3600.0
"""A series without samples for so long gives its place away."""
DAYS_BETWEEN_FALSE_ALARMS = 7.0 * 300
"""Of one series; so a node of 300 calls for nothing about once a week. More would make a true call wait for more
points than its first where the history is short."""
NOT_WATCHED = (
    "lepton_agent_",
    "lepton_ingest_",
    "lepton_store_",
    "scrape_",
    "promhttp_",
    "prometheus_",
    "go_",
    "up",
)
"""Begins of names of what tells of the telling itself, and has watches of its own."""
TELLS_A_TIME = ("_time_seconds", "_timestamp_seconds", "_info")


class Sweep:
    """Reads new samples of a store and says what is unusual.

    Args:
        nodes: told of each agent's arrivals.
        most_series: watched at the same time.
    """

    def __init__(
        self, store: MetricsStore, nodes: NodeWatch, *, clock: Clock, most_series: int = MOST_SERIES
    ) -> None:
        self._store, self._nodes, self._clock, self._most_series = store, nodes, clock, most_series
        self._policy = Policy(days_between_false_alarms=DAYS_BETWEEN_FALSE_ALARMS)
        self._watches: dict[Series, SeriesWatch] = {}
        self._seen_ms: dict[Series, int] = {}
        self._looked_ms = 0
        self.num_unwatched = 0

    @property
    def num_watched(self) -> int:
        """Series with a detector."""
        return len(self._watches)

    def look(self) -> list[Alarm]:
        """Take in what has come since the last look."""
        now_ms = int(self._clock.now_seconds() * 1000)
        start_ms = max(0, (self._looked_ms or now_ms) - int(LATE_SECONDS * 1000))
        found: list[Alarm] = []
        self.num_unwatched = 0
        metadata = self._store.metadata()
        for each in self._store.select([], start_ms, now_ms + int(LATE_SECONDS * 1000)):
            series, before = each.series, self._seen_ms.get(each.series, 0)
            fresh = each.times_ms > before
            if not fresh.any():
                continue
            self._seen_ms[series] = int(each.times_ms[-1])
            times, values = each.times_ms[fresh].tolist(), each.values[fresh].tolist()
            self._note_agent(series, values[-1])
            kind = metadata[series.name].kind if series.name in metadata else ""
            found.extend(self._watched(series, kind, times, values))
        self._looked_ms = now_ms
        self._forget(now_ms)
        return found

    def _note_agent(self, series: Series, value: float) -> None:
        if series.name == UP:
            self._nodes.heard(series.get("node"), up=value, now_seconds=self._clock.now_seconds())
        elif series.name == EXPECTED_GAP:
            self._nodes.expects(series.get("node"), value)

    def _watched(
        self, series: Series, kind: str, times_ms: list[int], values: list[float]
    ) -> Iterator[Alarm]:
        if series.name.startswith(NOT_WATCHED) or series.name.endswith(TELLS_A_TIME):
            return
        watch = self._watches.get(series)
        if watch is None:
            if len(self._watches) >= self._most_series:
                self.num_unwatched += 1
                return
            is_counter = kind == "counter" or (not kind and is_counter_name(series.name))
            watch = SeriesWatch(series, is_counter=is_counter, policy=self._policy)
            self._watches[series] = watch
        for at_ms, value in zip(times_ms, values, strict=True):
            alarm = watch.update(value, at_seconds=at_ms / 1000.0)
            if alarm is not None:
                yield alarm

    def _forget(self, now_ms: int) -> None:
        oldest_ms = now_ms - int(FORGET_SECONDS * 1000)
        for series in [each for each, at_ms in self._seen_ms.items() if at_ms < oldest_ms]:
            del self._seen_ms[series]
            self._watches.pop(series, None)
