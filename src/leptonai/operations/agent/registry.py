"""Values that a run's own process gives: gauges and counters, from any thread."""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping

from leptonai.core.errors import InputError, Refused
from leptonai.operations.agent.source import Reading, SeriesTable

MAX_SERIES = 20_000
"""More than 2,000 ranks with ten values each; a label that never repeats (a step, a time) is stopped here."""
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")
_NO_LABELS: Mapping[str, str] = {}
_Key = tuple[str, tuple[tuple[str, str], ...]]


class Registry:
    """The latest value of each gauge, and the sum of each counter. Safe to use from several threads.

    Args:
        max_series: at most so many.

    >>> registry = Registry()
    >>> registry.gauge("lepton_run_loss", 0.25)
    >>> registry.count("lepton_run_restarts_total", 2, {"rank": "3"})
    >>> sorted(registry.values())
    [('lepton_run_loss', (), 0.25), ('lepton_run_restarts_total', (('rank', '3'),), 2.0)]
    """

    def __init__(self, *, max_series: int = MAX_SERIES) -> None:
        self._max_series = max_series
        self._lock = threading.Lock()
        self._values: dict[_Key, float] = {}

    def gauge(self, name: str, value: float, labels: Mapping[str, str] = _NO_LABELS) -> None:
        """Say what a value is now.

        Raises:
            InputError: the name or a label is none that Prometheus takes.
            Refused: there are too many series.
        """
        with self._lock:
            self._values[self._key(name, labels)] = float(value)

    def count(self, name: str, amount: float = 1.0, labels: Mapping[str, str] = _NO_LABELS) -> None:
        """Add to a counter.

        Raises:
            InputError: the amount is negative or no number; the name or a label is wrong.
            Refused: there are too many series.
        """
        if not amount >= 0:
            raise InputError(f"{name}: a counter only grows, found {amount}", hint="use a gauge")
        with self._lock:
            key = self._key(name, labels)
            self._values[key] = self._values.get(key, 0.0) + amount

    def forget(self, labels: Mapping[str, str]) -> None:
        """Drop every series that has all of these labels, such as those of a rank that is gone."""
        wanted = set(labels.items())
        with self._lock:
            for key in [key for key in self._values if wanted <= set(key[1])]:
                del self._values[key]

    def values(self) -> list[tuple[str, tuple[tuple[str, str], ...], float]]:
        """Name, labels and value of each series."""
        with self._lock:
            return [(name, labels, value) for (name, labels), value in self._values.items()]

    def _key(self, name: str, labels: Mapping[str, str]) -> _Key:
        key = (name, tuple(sorted(labels.items())))
        if key not in self._values:
            if not _NAME.fullmatch(name):
                raise InputError(f"{name!r} is no name of a metric", hint="letters, digits, _ and :")
            for label in labels:
                if not _LABEL.fullmatch(label) or label.startswith("__"):
                    raise InputError(f"{name}: {label!r} is no name of a label", hint="letters, digits and _")
            if len(self._values) >= self._max_series:
                raise Refused(
                    f"{name}: there are {self._max_series:,} series already",
                    hint="a label must not hold what never repeats, such as a step or a time",
                )
        return key


class RegistrySource:
    """A registry as a source of the agent."""

    name = "run"
    interval_seconds = 0.0

    def __init__(self, registry: Registry, table: SeriesTable) -> None:
        self._registry = registry
        self._table = table
        self._keys: dict[_Key, int] = {}

    def read(self, out: list[Reading]) -> None:
        for name, labels, value in self._registry.values():
            key = self._keys.get((name, labels))
            if key is None:
                key = self._keys[name, labels] = self._table.with_common(name, dict(labels))
            out.append((key, value))

    def close(self) -> None:
        """Nothing stays open."""
