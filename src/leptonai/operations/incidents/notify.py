"""Who is told of what, and when: decided in pure functions; kept in the workspace until it was told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import sqlalchemy as sql

from leptonai.core.clock import Clock
from leptonai.core.errors import LeptonError
from leptonai.core.workspace import Workspace
from leptonai.operations.incidents.channels import Channel, OpsSettings
from leptonai.operations.incidents.incident import Change, Incident, Placed
from leptonai.operations.incidents.incident_store import IncidentStore
from leptonai.operations.incidents.silences import Silence, quiet_until

TOLD_CHANGES: tuple[Change, ...] = ("opened", "reopened", "worse", "closed")
"""Changes that people are told; the others stand in the timeline."""
FIRST_RETRY_SECONDS = 10.0
MOST_RETRY_SECONDS = 3600.0
GIVE_UP_SECONDS = 24 * 3600.0
"""A call that could not be made for a day is told in the list of calls instead."""

METADATA = sql.MetaData()
CALLS = sql.Table(
    "ops_calls", METADATA,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("number", sql.Integer, nullable=False),
    sql.Column("epoch", sql.Integer, nullable=False),
    sql.Column("change", sql.String(20), nullable=False),
    sql.Column("channel", sql.String(200), nullable=False),
    sql.Column("made_seconds", sql.Float, nullable=False),
    sql.Column("due_seconds", sql.Float, nullable=False),
    sql.Column("tries", sql.Integer, nullable=False),
    sql.Column("state", sql.String(20), nullable=False, index=True),
    sql.Column("problem", sql.Text, nullable=False),
    sql.UniqueConstraint("number", "epoch", "change", "channel"),
)  # fmt: skip
SILENCES = sql.Table(
    "ops_silences", METADATA,
    sql.Column("number", sql.Integer, primary_key=True),
    sql.Column("until_seconds", sql.Float, nullable=False),
    sql.Column("author", sql.Text, nullable=False),
    sql.Column("reason", sql.Text, nullable=False),
    sql.Column("cause", sql.Text, nullable=False),
    sql.Column("place", sql.Text, nullable=False),
)  # fmt: skip

State = Literal["waiting", "told", "given up"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One channel to be told of one change."""

    number: int
    epoch: int
    change: Change
    channel: str
    due_seconds: float
    state: State = "waiting"
    tries: int = 0
    problem: str = ""


def calls_for(
    placed: Placed, settings: OpsSettings, silences: Sequence[Silence], *, now_seconds: float
) -> list[Call]:
    """Whom to tell of what an alarm did, and when.

    Silenced incidents call nobody. In quiet hours a call waits for their end, unless it is grave enough.
    """
    incident = placed.incident
    if incident is None or placed.change not in TOLD_CHANGES:
        return []
    if any(each.covers(incident, now_seconds=now_seconds) for each in silences):
        return []
    found = []
    for channel in settings.channels:
        if not channel.wants(incident.severity):
            continue
        until = quiet_until(settings.quiet_hours, incident.severity, now_seconds) if channel.quiet else None
        found.append(
            Call(
                number=incident.number, epoch=incident.epoch, change=placed.change, channel=channel.name,
                due_seconds=now_seconds if until is None else until,
            )
        )  # fmt: skip
    return found


def retry_seconds(tries: int) -> float:
    """How long to wait after so many failures.

    >>> retry_seconds(1), retry_seconds(3), retry_seconds(20)
    (10.0, 40.0, 3600.0)
    """
    return float(min(FIRST_RETRY_SECONDS * 2.0 ** (tries - 1), MOST_RETRY_SECONDS))


def words_of(incident: Incident, change: Change) -> tuple[str, str]:
    """A headline and the text below it, for people."""
    state = {"worse": "worse", "reopened": "again"}.get(change, "new")
    state = state if incident.is_open else "over"
    headline = f"[{incident.severity}] {state}: {incident.title}"
    since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(incident.opened_seconds))
    lines = [f"incident {incident.number} at {incident.place}, since {since}"]
    lines += [f"- {each.message}" for each in incident.active if each.message != incident.title]
    if incident.run_ids:
        lines.append(f"runs: {', '.join(incident.run_ids)}")
    lines.append(f"more: lepton ops explain {incident.number}")
    return headline, "\n".join(lines)


class Outbox:
    """Calls that wait, and silences, in the workspace; what was decided is told even after a restart.

    Args:
        send: tells a channel (incident, change); raises LeptonError where it could not.
    """

    def __init__(
        self, workspace: Workspace, *, clock: Clock, send: Callable[[Channel, Incident, Change], None]
    ) -> None:
        self._workspace, self._clock, self._send = workspace, clock, send
        workspace.create(METADATA)

    def take(self, placed: Placed, settings: OpsSettings) -> int:
        """Keep the calls for what an alarm did; how many are new.

        An end is not told where the beginning still waits: that call will say that it is over.
        """
        new = 0
        calls = calls_for(placed, settings, self.silences(), now_seconds=self._clock.now_seconds())
        with self._workspace.transaction() as connection:
            for call in calls:
                of_opening = (
                    (CALLS.c.number == call.number)
                    & (CALLS.c.epoch == call.epoch)
                    & (CALLS.c.channel == call.channel)
                )
                earlier = connection.execute(
                    sql.select(CALLS.c.change, CALLS.c.state).where(of_opening)
                ).all()
                same = any(each.change == call.change for each in earlier)
                waits = any(each.state == "waiting" for each in earlier)
                if same or (call.change == "closed" and (waits or not earlier)):
                    continue
                connection.execute(
                    sql.insert(CALLS).values(**_row(call), made_seconds=self._clock.now_seconds())
                )
                new += 1
        return new

    def deliver(self, settings: OpsSettings, incidents: IncidentStore) -> int:
        """Make the calls that are due; how many were. One that fails is tried again, ever more seldom."""
        channels = {each.name: each for each in settings.channels}
        made = 0
        for row in self._due():
            channel = channels.get(row.channel)
            if channel is None:
                self._end(row.id, "given up", "the channel is no longer in ops.yaml")
                continue
            try:
                self._send(channel, incidents.get(row.number), row.change)
            except LeptonError as error:
                self._failed(row, error.message)
            else:
                self._end(row.id, "told", "")
                made += 1
        return made

    def calls(self) -> list[Call]:
        """All calls, the latest first."""
        with self._workspace.transaction() as connection:
            rows = connection.execute(sql.select(CALLS).order_by(CALLS.c.id.desc())).all()
        return [
            Call(
                number=row.number, epoch=row.epoch, change=row.change, channel=row.channel,
                due_seconds=row.due_seconds, state=row.state, tries=row.tries, problem=row.problem,
            )
            for row in rows
        ]  # fmt: skip

    def silence(self, silence: Silence) -> int:
        """Keep a silence; its number."""
        values = {
            "until_seconds": silence.until_seconds, "author": silence.author, "reason": silence.reason,
            "cause": silence.cause, "place": silence.place,
        }  # fmt: skip
        with self._workspace.transaction() as connection:
            made = connection.execute(sql.insert(SILENCES).values(**values).returning(SILENCES.c.number))
            return int(made.scalar_one())

    def silences(self) -> list[Silence]:
        """Those that have not ended."""
        return list(self._silences())

    def _silences(self) -> Iterator[Silence]:
        query = sql.select(SILENCES).where(SILENCES.c.until_seconds > self._clock.now_seconds())
        with self._workspace.transaction() as connection:
            rows = connection.execute(query).all()
        for row in rows:
            yield Silence(
                number=row.number, until_seconds=row.until_seconds, author=row.author, reason=row.reason,
                cause=row.cause, place=row.place,
            )  # fmt: skip

    def _due(self) -> Sequence[Any]:
        query = sql.select(CALLS).where(CALLS.c.state == "waiting").order_by(CALLS.c.id)
        query = query.where(CALLS.c.due_seconds <= self._clock.now_seconds())
        with self._workspace.transaction() as connection:
            return connection.execute(query).all()

    def _failed(self, row: Any, problem: str) -> None:
        now, tries = self._clock.now_seconds(), row.tries + 1
        if now - row.made_seconds > GIVE_UP_SECONDS:
            self._end(row.id, "given up", problem)
            return
        values = {"tries": tries, "problem": problem, "due_seconds": now + retry_seconds(tries)}
        with self._workspace.transaction() as connection:
            connection.execute(sql.update(CALLS).where(CALLS.c.id == row.id).values(**values))

    def _end(self, call: int, state: State, problem: str) -> None:
        with self._workspace.transaction() as connection:
            change = sql.update(CALLS).where(CALLS.c.id == call)
            connection.execute(change.values(state=state, problem=problem, tries=CALLS.c.tries + 1))


def _row(call: Call) -> dict[str, Any]:
    return {
        "number": call.number, "epoch": call.epoch, "change": call.change, "channel": call.channel,
        "due_seconds": call.due_seconds, "tries": 0, "state": "waiting", "problem": "",
    }  # fmt: skip
