"""Who need not be called, and when: silences for known trouble, quiet hours for people. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from leptonai.core.errors import InputError
from leptonai.operations.alarms import SEVERITIES, Severity
from leptonai.operations.incidents.incident import Incident

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DAY_MINUTES = 24 * 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Silence:
    """Nobody is called about incidents that match; they are still recorded.

    Args:
        number: names it; 0: not stored yet.
        until_seconds: wall time at which it ends.
        author: who set it.
        reason: why.
        cause: kind of the incident's alarm; empty: any.
        place: node or run; empty: any.
    """

    until_seconds: float
    author: str
    reason: str
    cause: str = ""
    place: str = ""
    number: int = 0

    def __post_init__(self) -> None:
        if not (self.cause or self.place):
            raise InputError(
                "a silence needs a cause or a place", hint="silencing everything hides everything"
            )
        if not self.reason.strip():
            raise InputError("a silence needs a reason", hint="such as: disk is being replaced")

    def covers(self, incident: Incident, *, now_seconds: float) -> bool:
        """Whether the incident is silenced now: all of what goes on in it must match."""
        causes = {each.kind for each in incident.active} or {incident.cause}
        return (
            now_seconds < self.until_seconds
            and (not self.cause or causes == {self.cause})
            and (not self.place or incident.place == self.place)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class QuietHours:
    """Hours of some days in which people are called only for what cannot wait.

    Args:
        days: on which it begins.
        from_minute: of the day, in [0, 1440).
        to_minute: of the day; at or before ``from_minute`` it is one of the next day.
        timezone: an IANA name, such as ``Europe/Berlin``; hours follow its daylight saving.
        unless: this severity or a graver one is told at once all the same.

    Raises:
        InputError: there is no such timezone, or a minute is not one of a day.
    """

    days: tuple[Day, ...]
    from_minute: int
    to_minute: int
    timezone: str = "UTC"
    unless: Severity = "fatal"

    def __post_init__(self) -> None:
        if not (0 <= self.from_minute < DAY_MINUTES and 0 <= self.to_minute < DAY_MINUTES):
            raise InputError("quiet hours: expected minutes of a day, in [0, 1440)")
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise InputError(
                f"quiet hours: there is no timezone {self.timezone!r}", hint="such as Europe/Berlin"
            ) from None

    def end_of(self, at_seconds: float) -> float | None:
        """When the quiet hours that ``at_seconds`` lies in end; None: it lies in none.

        >>> night = QuietHours(days=("mon",), from_minute=22 * 60, to_minute=6 * 60)
        >>> monday_23 = 1767654000.0  # 2026-01-05 23:00 UTC
        >>> night.end_of(monday_23) - monday_23
        25200.0
        >>> night.end_of(monday_23 - 7200.0) is None
        True
        """
        zone = ZoneInfo(self.timezone)
        now = datetime.fromtimestamp(at_seconds, zone)
        for begun in (now.date(), now.date() - timedelta(days=1)):
            if DAYS[begun.weekday()] not in self.days:
                continue
            midnight = datetime(begun.year, begun.month, begun.day, tzinfo=zone)
            later = timedelta(days=1) if self.to_minute <= self.from_minute else timedelta()
            # Wall-clock arithmetic: an aware datetime and a timedelta keep the hour over a change of offset.
            begin = midnight + timedelta(minutes=self.from_minute)
            end = midnight + later + timedelta(minutes=self.to_minute)
            if begin.timestamp() <= at_seconds < end.timestamp():
                return end.timestamp()
        return None

    def holds_back(self, severity: Severity, at_seconds: float) -> float | None:
        """Until when a call of this severity waits; None: it does not."""
        if SEVERITIES.index(severity) >= SEVERITIES.index(self.unless):
            return None
        return self.end_of(at_seconds)


def quiet_until(hours: Sequence[QuietHours], severity: Severity, at_seconds: float) -> float | None:
    """The end of the quiet hours that hold a call back, those that follow without a gap included; None: none does."""
    until: float | None = None
    at = at_seconds
    for _ in range(len(hours) * len(DAYS) + 1):
        ends = [end for each in hours if (end := each.holds_back(severity, at)) is not None]
        if not ends:
            break
        until = at = max(ends)
    return until
