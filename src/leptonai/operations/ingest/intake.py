"""The way into the store that all kinds of ingest share: series known by a key, limits for each client, counts."""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from leptonai.core.clock import Clock
from leptonai.core.errors import InputError, Refused
from leptonai.operations.ingest.limits import IngestLimits, Tally
from leptonai.operations.series import NAME_LABEL, Sample, Series
from leptonai.operations.store import MetricsStore

METRIC_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
REFUSED_SERIES = -1
"""In place of a number: this series is over its client's limit."""

MAX_NAME, MAX_HELP = 256, 4096
"""Characters of a metric's name and unit, and of its help, that are kept of what a client says of it."""
_LATEST_SECONDS = float(1 << 52)
"""Later times, and NaN, are no times; as milliseconds they would not fit the store's columns."""
_REASONS = ("duplicate", "out_of_order", "too_far_in_future", "too_old", "unknown_series")


class _Client:
    """The active series of one client: two generations, so that forgetting old ones costs nothing a sample."""

    def __init__(self, now_seconds: float) -> None:
        self.current: dict[Hashable, int] = {}
        self.before: dict[Hashable, int] = {}
        self.turned_at_seconds = now_seconds

    def turn(self, now_seconds: float, active_seconds: float) -> None:
        if now_seconds - self.turned_at_seconds >= active_seconds:
            self.before, self.current = self.current, {}
            self.turned_at_seconds = now_seconds


class Intake:
    """Samples of clients on their way into a store; safe to use from several threads.

    Args:
        store: where they go.
        limits: of a request and of a client.
        clock: for how long a series has been silent.
    """

    def __init__(self, store: MetricsStore, *, limits: IngestLimits, clock: Clock) -> None:
        self.store, self.limits, self.clock = store, limits, clock
        self.totals: Counter[tuple[str, str]] = Counter()
        """Samples by (source, ``accepted`` or why refused), since the start."""
        self._clients: dict[str, _Client] = {}
        self._lock = threading.Lock()

    def numbers(
        self, client: str, keys: Sequence[Hashable], make: Callable[[int], Series]
    ) -> tuple[NDArray[np.int64], int]:
        """The store's numbers of series, and how many of them were refused (``REFUSED_SERIES``).

        Args:
            client: whose limit counts.
            keys: what identifies each series to this client.
            make: the series at a position of ``keys``; asked only where the key is new.

        Raises:
            InputError: a series is not valid; nothing of the request must be stored then.
        """
        with self._lock:
            now_seconds = self.clock.monotonic_seconds()
            if client not in self._clients:
                self._forget(now_seconds)
                self._clients[client] = _Client(now_seconds)
            own = self._clients[client]
            own.turn(now_seconds, self.limits.active_seconds)
            current = own.current
            found = [current.get(key) for key in keys]
            num_refused = 0
            if None in found:
                for at, number in enumerate(found):
                    if number is None:
                        found[at] = number = self._register(own, keys[at], at, make)
                        num_refused += number == REFUSED_SERIES
            return np.array(found, np.int64), num_refused

    def _forget(self, now_seconds: float) -> None:
        """Let go of clients none of whose series is active any more."""
        oldest = now_seconds - 2 * self.limits.active_seconds
        for name in [name for name, own in self._clients.items() if own.turned_at_seconds < oldest]:
            del self._clients[name]

    def _register(self, own: _Client, key: Hashable, at: int, make: Callable[[int], Series]) -> int:
        number = own.current.get(key)
        if number is None:
            number = own.before.pop(key, None)
        if number is None:
            if len(own.current) + len(own.before) >= self.limits.series_per_client:
                return REFUSED_SERIES
            try:
                number = self.store.series_id(make(at))
            except Refused:
                return REFUSED_SERIES
        own.current[key] = number
        return number

    def put(
        self, source: str, ids: NDArray[np.int64], times_ms: NDArray[np.int64], values: NDArray[np.float64]
    ) -> Tally:
        """Store samples and count what became of them.

        Raises:
            Fault: they could not be made durable; sending them again may help.
        """
        tally = Tally()
        known = ids != REFUSED_SERIES
        if not known.all():
            tally.refused["over_the_series_limit"] = int((~known).sum())
            ids, times_ms, values = ids[known], times_ms[known], values[known]
        if len(ids):
            done = self.store.append(ids, times_ms, values)
            tally.num_accepted = done.num_accepted + done.num_repeated
            for reason in _REASONS:
                if count := getattr(done, f"num_{reason}"):
                    tally.refused[reason] += count
        with self._lock:
            self.totals[source, "accepted"] += tally.num_accepted
            for reason, count in tally.refused.items():
                self.totals[source, reason] += count
        return tally

    def put_samples(self, source: str, client: str, samples: Iterable[Sample]) -> Tally:
        """Store samples as values, for sources where speed does not matter.

        Raises:
            Fault: they could not be made durable.
        """
        given = list(samples)
        listed = [each for each in given if abs(each.at_seconds) <= _LATEST_SECONDS]
        ids, _ = self.numbers(client, [each.series for each in listed], lambda at: listed[at].series)
        times_ms = np.array([round(each.at_seconds * 1000) for each in listed], np.int64)
        tally = self.put(source, ids, times_ms, np.array([each.value for each in listed], np.float64))
        if num_timeless := len(given) - len(listed):
            tally.refused["no_time"] += num_timeless
            self.count_failure(source, "no_time", num_timeless)
        return tally

    def describe(self, source: str, infos: Iterable[tuple[str, str, str, str]]) -> None:
        """Keep name, kind, unit and help of metrics, of a bounded number of them; what is over it is counted.

        Raises:
            Fault: they could not be written down.
        """
        listed = list(infos)
        known = self.store.metadata() if listed else {}
        room = self.limits.metrics - len(known)
        for name, kind, unit, help in listed:
            if len(name) > MAX_NAME or METRIC_NAME.fullmatch(name) is None:
                self.count_failure(source, "metadata_without_a_name")
            elif name not in known and room <= 0:
                self.count_failure(source, "over_the_metadata_limit")
            else:
                room -= name not in known
                self.store.set_metadata(name, kind, unit[:MAX_NAME], help[:MAX_HELP])

    def count_failure(self, source: str, reason: str, number: int = 1) -> None:
        """Count requests, or parts of them, that could not be read at all."""
        if number:
            with self._lock:
                self.totals[source, reason] += number

    def num_active_series(self) -> int:
        """Of all clients."""
        with self._lock:
            return sum(len(own.current) + len(own.before) for own in self._clients.values())


def checked_series(pairs: Iterable[tuple[str, str]], *, max_labels: int) -> Series:
    """A series of labels in any order; empty values are the same as none.

    Raises:
        InputError: there is no metric name, a name is not valid or comes twice, or there are too many labels.

    >>> checked_series([("b", "2"), ("__name__", "m"), ("a", "")], max_labels=3)
    m{b="2"}
    """
    labels = list(pairs)
    if len(labels) > max_labels:
        raise InputError(f"a series has {len(labels)} labels, and may have {max_labels}")
    kept: dict[str, str] = {}
    for name, value in labels:
        if name in kept:
            raise InputError(f"the label {name!r} comes twice in one series")
        if LABEL_NAME.fullmatch(name) is None:
            raise InputError(f"{name!r} is not a label's name")
        kept[name] = value
    if METRIC_NAME.fullmatch(kept.get(NAME_LABEL, "")) is None:
        raise InputError(f"{kept.get(NAME_LABEL, '')!r} is not a metric's name")
    return Series(tuple(sorted((name, value) for name, value in kept.items() if value)))
