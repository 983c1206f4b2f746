"""Where a worker's time goes, so that what was predicted can be held against what was measured."""

from __future__ import annotations

import time
from collections.abc import Callable

STEP_PHASES = ("input", "compute", "exchange", "update")
"""Preparing examples; forward and backward passes; waiting for other workers or servers; the optimiser's step."""


class Stopwatch:
    """Adds up the seconds of each phase; whatever lies between two laps belongs to the later one.

    On a GPU, work goes on after the call that began it: its seconds fall to the phase that first waits for it.

    Args:
        now: a clock, in seconds.

    >>> times = iter([0.0, 2.0, 3.0, 7.0])
    >>> watch = Stopwatch(now=lambda: next(times))
    >>> watch.begin(), watch.lap("input"), watch.begin(), watch.lap("compute")
    (None, None, None, None)
    >>> watch.take(), watch.take()
    ({'input': 2.0, 'compute': 4.0}, {})
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self._now = now
        self._since = 0.0
        self._seconds: dict[str, float] = {}

    def begin(self) -> None:
        """Count from here."""
        self._since = self._now()

    def lap(self, phase: str, *, until: float | None = None) -> None:
        """What passed since the last mark was this phase.

        Args:
            until: up to this reading of :meth:`now`, which then is the mark; None: up to now.
        """
        now = self._now() if until is None else max(until, self._since)
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._since
        self._since = now

    def now(self) -> float:
        """The clock."""
        return self._now()

    def take(self) -> dict[str, float]:
        """Phase to seconds since last taken."""
        found, self._seconds = self._seconds, {}
        return found
