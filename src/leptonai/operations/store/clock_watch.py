"""Notices that the wall clock was set: it then moves by another amount than the monotonic one."""

from __future__ import annotations

from leptonai.core.clock import Clock

JUMP_SECONDS = 60.0
"""Slewing moves a clock by at most 500 parts in a million (adjtimex), far below this between two looks."""
UNSURE_SECONDS = 3600.0
"""How long after a jump nothing is dropped for its age: long enough for the clock to be set right again."""


class ClockWatch:
    """Compares the two clocks at every look."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._offset_seconds: float | None = None
        self._unsure_until_seconds = float("-inf")
        self.num_jumps = 0

    def look(self, now_seconds: float) -> float:
        """By how much the wall clock has jumped since the last look; 0: it has not."""
        offset = now_seconds - self._clock.monotonic_seconds()
        before, self._offset_seconds = self._offset_seconds, offset
        if before is None or abs(offset - before) < JUMP_SECONDS:
            return 0.0
        self.num_jumps += 1
        self._unsure_until_seconds = self._clock.monotonic_seconds() + UNSURE_SECONDS
        return offset - before

    def is_unsure(self) -> bool:
        """Whether the wall clock jumped within the last hour."""
        return self._clock.monotonic_seconds() < self._unsure_until_seconds
