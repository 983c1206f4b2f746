"""Incidents in the workspace database: alarms go in, incidents come out; safe under several writers at once."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import sqlalchemy as sql

from leptonai.core.clock import Clock
from leptonai.core.errors import InputError
from leptonai.core.values import value_from_json, value_to_json
from leptonai.core.workspace import Workspace
from leptonai.operations.alarms import Alarm, Subject
from leptonai.operations.incidents.incident import (
    REOPEN_SECONDS,
    Change,
    Incident,
    Placed,
    alarm_digest,
    place_alarm,
)

MOST_MOMENTS = 500
"""Entries of a timeline that are kept; later ones are counted in the incident only."""

METADATA = sql.MetaData()
INCIDENTS = sql.Table(
    "ops_incidents", METADATA,
    sql.Column("number", sql.Integer, primary_key=True),
    sql.Column("is_open", sql.Boolean, nullable=False, index=True),
    sql.Column("last_seconds", sql.Float, nullable=False, index=True),
    sql.Column("body", sql.Text, nullable=False),
)  # fmt: skip
MOMENTS = sql.Table(
    "ops_incident_moments", METADATA,
    sql.Column("id", sql.Integer, primary_key=True),
    sql.Column("digest", sql.String(64), nullable=False, unique=True),
    sql.Column("number", sql.Integer, nullable=False, index=True),
    sql.Column("epoch", sql.Integer, nullable=False),
    sql.Column("change", sql.String(20), nullable=False),
    sql.Column("taken_seconds", sql.Float, nullable=False),
    sql.Column("alarm", sql.Text, nullable=False),
)  # fmt: skip
LOCKS = sql.Table("ops_locks", METADATA, sql.Column("name", sql.String(50), primary_key=True))


@dataclass(frozen=True, slots=True)
class Moment:
    """One entry of an incident's timeline."""

    epoch: int
    change: Change
    taken_seconds: float
    alarm: Alarm


class IncidentStore:
    """The incidents of a workspace.

    Args:
        clock: for when alarms were taken in.
    """

    def __init__(self, workspace: Workspace, *, clock: Clock) -> None:
        self._workspace, self._clock = workspace, clock
        workspace.create(METADATA)

    def take(self, alarm: Alarm, *, places: Mapping[Subject, str] | None = None) -> Placed:
        """Take in an alarm. The same message twice counts once.

        Args:
            places: nodes of subjects that do not carry theirs in their name.
        """
        digest = alarm_digest(alarm)
        with self._workspace.transaction() as connection:
            _lock(connection)
            seen = sql.select(MOMENTS.c.number).where(MOMENTS.c.digest == digest)
            if connection.execute(seen).first() is not None:
                return Placed("late", None)
            recent = alarm.at_seconds - REOPEN_SECONDS
            query = sql.select(INCIDENTS.c.body).where(
                INCIDENTS.c.is_open | (INCIDENTS.c.last_seconds >= recent)
            )
            known = [_incident(body) for body in connection.scalars(query)]
            number = (connection.scalar(sql.select(sql.func.max(INCIDENTS.c.number))) or 0) + 1
            placed = place_alarm(alarm, known, number=number, places=places)
            if placed.incident is not None:
                _write(connection, placed.incident)
                self._note(connection, digest, placed.change, placed.incident, alarm)
        return placed

    def _note(
        self, connection: sql.Connection, digest: str, change: Change, incident: Incident, alarm: Alarm
    ) -> None:
        count = sql.select(sql.func.count()).select_from(MOMENTS).where(MOMENTS.c.number == incident.number)
        if change == "repeated" and (connection.scalar(count) or 0) >= MOST_MOMENTS:
            return
        connection.execute(
            sql.insert(MOMENTS).values(
                digest=digest, number=incident.number, epoch=incident.epoch, change=change,
                taken_seconds=self._clock.now_seconds(), alarm=json.dumps(value_to_json(alarm)),
            )
        )  # fmt: skip

    def close(self, number: int, *, epoch: int, at_seconds: float) -> bool:
        """A person closes an incident; False: it was reopened since, or is closed already.

        Args:
            epoch: of the opening the person saw.
        """
        with self._workspace.transaction() as connection:
            _lock(connection)
            found = _get(connection, number)
            if found.epoch != epoch or not found.is_open:
                return False
            _write(connection, replace(found, active=(), closed_seconds=at_seconds, last_seconds=at_seconds))
        return True

    def get(self, number: int) -> Incident:
        """One incident.

        Raises:
            InputError: there is none of that number.
        """
        with self._workspace.transaction() as connection:
            return _get(connection, number)

    def list(self, *, only_open: bool = False, limit: int = 100) -> Sequence[Incident]:
        """Open ones first, then by when they were last heard of, the latest first."""
        query = sql.select(INCIDENTS.c.body).order_by(
            INCIDENTS.c.is_open.desc(), INCIDENTS.c.last_seconds.desc()
        )
        if only_open:
            query = query.where(INCIDENTS.c.is_open)
        with self._workspace.transaction() as connection:
            return [_incident(body) for body in connection.scalars(query.limit(limit))]

    def changes(self, *, after: int, since_seconds: float) -> Sequence[tuple[int, Placed]]:
        """What became of incidents after a change of some number, in order, by whichever process.

        Args:
            after: number of the last change known; 0: none.
            since_seconds: those taken in earlier are left out.

        Returns:
            Numbers of changes, and what changed, with the incident as it is now; changes of an earlier opening are
            left out.
        """
        query = sql.select(MOMENTS.c.id, MOMENTS.c.number, MOMENTS.c.epoch, MOMENTS.c.change).order_by(
            MOMENTS.c.id
        )
        query = query.where((MOMENTS.c.id > after) & (MOMENTS.c.taken_seconds >= since_seconds))
        with self._workspace.transaction() as connection:
            found = [(row, _get(connection, row.number)) for row in connection.execute(query)]
        return [(row.id, Placed(row.change, each)) for row, each in found if row.epoch == each.epoch]

    def timeline(self, number: int) -> Sequence[Moment]:
        """What happened in an incident, in the order it was taken in."""
        query = sql.select(MOMENTS).where(MOMENTS.c.number == number).order_by(MOMENTS.c.id)
        with self._workspace.transaction() as connection:
            return [
                Moment(
                    row.epoch, row.change, row.taken_seconds, value_from_json(Alarm, json.loads(row.alarm))
                )
                for row in connection.execute(query)
            ]


def _lock(connection: sql.Connection) -> None:
    """One writer at a time: SQLite sees to it by itself, PostgreSQL by a lock on a table of ours."""
    if connection.dialect.name == "postgresql":
        connection.execute(sql.text("LOCK TABLE ops_locks IN EXCLUSIVE MODE"))


def _get(connection: sql.Connection, number: int) -> Incident:
    body = connection.scalar(sql.select(INCIDENTS.c.body).where(INCIDENTS.c.number == number))
    if body is None:
        raise InputError(f"there is no incident {number}", hint="list them: lepton ops incidents")
    return _incident(body)


def _write(connection: sql.Connection, incident: Incident) -> None:
    values = {
        "is_open": incident.is_open, "last_seconds": incident.last_seconds,
        "body": json.dumps(value_to_json(incident)),
    }  # fmt: skip
    changed = connection.execute(
        sql.update(INCIDENTS).where(INCIDENTS.c.number == incident.number).values(**values)
    )
    if changed.rowcount == 0:
        connection.execute(sql.insert(INCIDENTS).values(number=incident.number, **values))


def _incident(body: str) -> Incident:
    return value_from_json(Incident, json.loads(body))
