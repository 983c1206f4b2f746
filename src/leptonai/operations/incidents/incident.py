"""Alarms of one cause as one incident: which alarm opens, joins, repeats or closes one. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from leptonai.core.values import value_to_json
from leptonai.operations.alarms import SEVERITIES, Alarm, Severity, Subject, SubjectKind

Change = Literal["opened", "reopened", "joined", "worse", "repeated", "eased", "closed", "late"]
"""What an alarm did to an incident. ``eased``: one of its alarms is over, others are not. ``late``: the alarm is about
an opening that has been closed since, and alters nothing."""

JOIN_SECONDS = 300.0
"""Alarms of one place this close together have one cause: a lost device stops its rank at once, its peers within the
collective's deadline, and its node's metrics within a scrape or two."""
REOPEN_SECONDS = 900.0
"""An alarm that comes back this soon after its incident was closed is the same trouble again, not a new one."""

_DEPTH: Mapping[SubjectKind, int] = {
    "device": 0, "disk": 0, "link": 0, "node": 1, "rank": 2, "run": 3, "series": 4,
}  # fmt: skip
"""Causes lie deeper than what they cause: a device stops a rank, a rank its run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Active:
    """An alarm of an incident that is not over."""

    kind: str
    subject: Subject
    severity: Severity
    since_seconds: float
    message: str

    @property
    def key(self) -> str:
        """The same trouble of the same subject."""
        return f"{self.kind} of {self.subject}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Incident:
    """Alarms of one cause.

    Args:
        number: names it, from 1.
        epoch: times it was opened, from 1: what is said about an earlier opening does not touch a later one.
        place: node, or run, that its alarms have in common.
        severity: the worst of this opening.
        title: of the likeliest cause, one sentence.
        cause: kind of the alarm that the title is from.
        active: alarms that are not over; empty: it is closed.
        keys: of all alarms ever in it.
        num_alarms: taken in, repeated ones too.
        closed_seconds: None while it is open.
        ended_before_seconds: when the opening before this one was closed.
    """

    number: int
    epoch: int
    place: str
    severity: Severity
    title: str
    cause: str
    subject: Subject
    opened_seconds: float
    last_seconds: float
    active: tuple[Active, ...]
    keys: tuple[str, ...]
    run_ids: tuple[str, ...] = ()
    num_alarms: int = 1
    closed_seconds: float | None = None
    ended_before_seconds: float | None = None

    @property
    def is_open(self) -> bool:
        """Whether any of its alarms is not over."""
        return self.closed_seconds is None


@dataclass(frozen=True, slots=True)
class Placed:
    """What became of an alarm; ``incident`` is None where it altered nothing."""

    change: Change
    incident: Incident | None


def alarm_digest(alarm: Alarm) -> str:
    """Equal for the same message sent twice."""
    words = json.dumps(value_to_json(alarm), sort_keys=True)
    return hashlib.sha256(words.encode()).hexdigest()


def place_of(alarm: Alarm, places: Mapping[Subject, str]) -> str:
    """Where the alarm's trouble is: a node if that can be told, else the run, else the subject itself.

    Args:
        places: nodes of subjects that do not carry theirs in their name, such as ranks.

    >>> place_of(Alarm(kind="xid_79", subject=Subject("device", "a/gpu3"), severity="fatal", at_seconds=0.0,
    ...     since_seconds=0.0, message="lost"), {})
    'a'
    """
    subject = alarm.subject
    if subject in places:
        return places[subject]
    if subject.kind in ("device", "disk", "link"):
        return subject.name.split("/", 1)[0]
    if subject.kind == "node":
        return subject.name
    return f"run {alarm.run_id}" if alarm.run_id else str(subject)


def place_alarm(
    alarm: Alarm, incidents: Sequence[Incident], *, number: int, places: Mapping[Subject, str] | None = None
) -> Placed:
    """What an alarm does to the incidents there are.

    Args:
        incidents: all that are open, and those closed lately.
        number: for a new one.
        places: see :func:`place_of`.
    """
    key = _active(alarm).key
    known = [each for each in incidents if key in each.keys]
    if any(alarm.at_seconds <= _last_end(each) for each in known):
        return Placed("late", None)
    if alarm.over:
        return _end(alarm, key, known)
    where = place_of(alarm, places or {})
    for each in known:
        if each.is_open:
            return _join(alarm, each)
    for each in incidents:
        near = abs(alarm.since_seconds - each.last_seconds) <= JOIN_SECONDS
        same = each.place == where or bool(alarm.run_id and alarm.run_id in each.run_ids)
        if each.is_open and near and same:
            return _join(alarm, each)
    for each in sorted(known, key=_last_end, reverse=True):
        if alarm.at_seconds - _last_end(each) <= REOPEN_SECONDS:
            return Placed("reopened", _reopened(alarm, each))
    return Placed("opened", _opened(alarm, number, where))


def _end(alarm: Alarm, key: str, known: Sequence[Incident]) -> Placed:
    for each in known:
        ended = next((one for one in each.active if one.key == key), None)
        if ended is None or alarm.at_seconds < ended.since_seconds:
            continue
        left = tuple(one for one in each.active if one.key != key)
        changed = replace(
            each, active=left, last_seconds=alarm.at_seconds, num_alarms=each.num_alarms + 1,
            closed_seconds=None if left else alarm.at_seconds,
        )  # fmt: skip
        return Placed("eased" if left else "closed", changed)
    return Placed("late", None)


def _join(alarm: Alarm, incident: Incident) -> Placed:
    new = _active(alarm)
    before = next((each for each in incident.active if each.key == new.key), None)
    if before is not None:  # it goes on: it began when it was first said to
        new = replace(new, since_seconds=min(before.since_seconds, new.since_seconds))
    active = (*(each for each in incident.active if each.key != new.key), new)
    worst = worse_of(incident.severity, alarm.severity)
    changed = replace(
        incident, active=active, severity=worst, last_seconds=max(incident.last_seconds, alarm.at_seconds),
        keys=tuple(dict.fromkeys((*incident.keys, new.key))), run_ids=_runs(incident, alarm),
        num_alarms=incident.num_alarms + 1,
    )  # fmt: skip
    changed = _titled(changed)
    if worst != incident.severity:
        return Placed("worse", changed)
    return Placed("joined" if before is None else "repeated", changed)


def _reopened(alarm: Alarm, incident: Incident) -> Incident:
    return _titled(
        replace(
            incident, epoch=incident.epoch + 1, active=(_active(alarm),), severity=alarm.severity,
            opened_seconds=alarm.since_seconds, last_seconds=alarm.at_seconds, closed_seconds=None,
            ended_before_seconds=incident.closed_seconds,
            num_alarms=incident.num_alarms + 1, run_ids=_runs(incident, alarm),
        )
    )  # fmt: skip


def _opened(alarm: Alarm, number: int, where: str) -> Incident:
    active = _active(alarm)
    return Incident(
        number=number, epoch=1, place=where, severity=alarm.severity, title=alarm.message, cause=alarm.kind,
        subject=alarm.subject, opened_seconds=alarm.since_seconds, last_seconds=alarm.at_seconds,
        active=(active,), keys=(active.key,), run_ids=(alarm.run_id,) if alarm.run_id else (),
    )  # fmt: skip


def _titled(incident: Incident) -> Incident:
    """The deepest alarm names the incident; of several the one that began first."""
    root = min(incident.active, key=lambda each: (_DEPTH[each.subject.kind], each.since_seconds))
    return replace(incident, title=root.message, cause=root.kind, subject=root.subject)


def _active(alarm: Alarm) -> Active:
    return Active(
        kind=alarm.kind, subject=alarm.subject, severity=alarm.severity, since_seconds=alarm.since_seconds,
        message=alarm.message,
    )  # fmt: skip


def _runs(incident: Incident, alarm: Alarm) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*incident.run_ids, *((alarm.run_id,) if alarm.run_id else ()))))


def _last_end(incident: Incident) -> float:
    """When it was last closed, an earlier opening counts too; minus infinity: never."""
    ended = incident.ended_before_seconds if incident.is_open else incident.closed_seconds
    return float("-inf") if ended is None else ended


def worse_of(one: Severity, other: Severity) -> Severity:
    """The graver of two severities.

    >>> worse_of("critical", "warning")
    'critical'
    """
    return max(one, other, key=SEVERITIES.index)
