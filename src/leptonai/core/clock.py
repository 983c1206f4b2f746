"""Time as an argument: the real clock, and one that tests move by hand."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Tells wall time (for records) and monotonic time (for durations), both in seconds."""

    def now_seconds(self) -> float:
        """Wall time, seconds since 1970-01-01 UTC."""
        ...

    def monotonic_seconds(self) -> float:
        """A clock that never goes back; only differences mean anything."""
        ...


class SystemClock:
    """The machine's own clocks."""

    def now_seconds(self) -> float:
        return time.time()

    def monotonic_seconds(self) -> float:
        return time.monotonic()


class FakeClock:
    """A clock for tests: it moves only when told to.

    >>> clock = FakeClock(start_seconds=10.0)
    >>> clock.advance(2.5)
    >>> clock.monotonic_seconds()
    12.5
    """

    def __init__(self, *, start_seconds: float = 0.0) -> None:
        self._seconds = start_seconds

    def advance(self, seconds: float) -> None:
        """Move forward by ``seconds`` >= 0."""
        self._seconds += seconds

    def now_seconds(self) -> float:
        return self._seconds

    def monotonic_seconds(self) -> float:
        return self._seconds
