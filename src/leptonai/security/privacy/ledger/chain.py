"""The entries in the database, each sealed to the one before it, so that no change goes unseen.

Row n holds ``mac_n = HMAC-SHA256(key, mac_(n-1) | n | body_n)``; one head row holds the number of rows and the last
mac, sealed as well. Without the key nobody can alter, insert, remove or move a row and make the seals fit again.
What seals cannot show is that the whole database was put back to an older copy:
:mod:`leptonai.security.privacy.ledger.memory` remembers on each machine how far the ledger had come.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sql
from sqlalchemy.exc import IntegrityError, ProgrammingError

from leptonai.core.errors import Fault, InputError
from leptonai.core.workspace import Workspace
from leptonai.security.privacy.ledger.memory import Memory
from leptonai.security.privacy.ledger.turn import limit_waiting

METADATA = sql.MetaData()
ROWS = sql.Table(
    "privacy_ledger",
    METADATA,
    sql.Column("sequence", sql.BigInteger, primary_key=True, autoincrement=False),
    sql.Column("body", sql.Text, nullable=False),
    sql.Column("mac", sql.String(64), nullable=False),
)
HEAD = sql.Table(
    "privacy_ledger_head",
    METADATA,
    sql.Column("id", sql.Integer, primary_key=True, autoincrement=False),
    sql.Column("key_id", sql.String(64), nullable=False),
    sql.Column("length", sql.BigInteger, nullable=False),
    sql.Column("last_mac", sql.String(64), nullable=False),
    sql.Column("mac", sql.String(64), nullable=False),
)
_DAMAGE_HINT = "put back the last good copy of the workspace; until then nothing is charged"


@dataclass(frozen=True, slots=True)
class Position:
    """A place in the ledger: the number of rows up to it, and the seal of the last."""

    length: int
    mac: str


class Chain:
    """The sealed rows of one ledger.

    Args:
        workspace: the database; the tables are made if they are not there.
        key: the secret, 32 bytes, the same for all who share the ledger.
        memory: how far this machine has seen the ledger come; None: it is not remembered.

    Raises:
        InputError: the ledger was written with another key.
        Fault: it was altered.
    """

    def __init__(self, workspace: Workspace, key: bytes, memory: Memory | None = None) -> None:
        if len(key) != 32:
            raise InputError(f"privacy ledger: expected a key of 32 bytes, found {len(key)}")
        self._workspace = workspace
        self._key = hashlib.blake2b(b"seal", key=key, digest_size=32).digest()
        self._key_id = hashlib.blake2b(b"name", key=key, digest_size=32).hexdigest()
        self._memory = memory
        self.start = Position(0, self._seal(b"start"))
        _create_tables(workspace)
        self._create_head()

    def read(
        self, connection: sql.Connection, after: Position, *, lock: bool = False
    ) -> tuple[list[tuple[int, str]], Position]:
        """The rows after a place, as (number, body), and the place they lead to; every seal is checked.

        Args:
            connection: a transaction of the workspace.
            after: what the caller has read before.
            lock: nobody else may append until the transaction ends.

        Raises:
            Fault: the ledger was altered; the message names the row.
        """
        head = self._head(connection, lock=lock)
        if head.length < after.length or (head.length == after.length and head.mac != after.mac):
            raise _altered(f"it has lost or changed rows: {after.length} were there, now {head.length}")
        query = sql.select(ROWS).where(ROWS.c.sequence > after.length).order_by(ROWS.c.sequence)
        found: list[tuple[int, str]] = []
        place = after
        for row in connection.execute(query):
            if place.length == head.length:
                if lock:
                    raise _altered(f"row {row.sequence} was added behind its end")
                break  # written since the head was read
            expected = place.length + 1
            if row.sequence != expected:
                raise _altered(f"row {expected} is missing")
            if not hmac.compare_digest(row.mac, self._row_mac(place.mac, row.sequence, row.body)):
                raise _altered(f"row {row.sequence} does not bear its seal")
            self._recall(row.sequence, row.mac)
            found.append((row.sequence, row.body))
            place = Position(expected, row.mac)
        if place != head:
            raise _altered(f"row {place.length + 1} is missing")
        return found, place

    def append(self, connection: sql.Connection, after: Position, bodies: Sequence[str]) -> Position:
        """Write rows behind the last; the caller has read up to ``after`` under the lock."""
        place = after
        for body in bodies:
            number = place.length + 1
            mac = self._row_mac(place.mac, number, body)
            connection.execute(sql.insert(ROWS).values(sequence=number, body=body, mac=mac))
            place = Position(number, mac)
        connection.execute(sql.update(HEAD).values(self._head_values(place)))
        return place

    def remember(self, place: Position) -> None:
        """Note on this machine that the ledger came this far; after the transaction, never before."""
        if self._memory is not None:
            self._memory.advance(place.length, place.mac)

    def problems(self) -> list[str]:
        """Everything that is wrong with the ledger, a sentence each; empty: nothing."""
        with self._workspace.transaction() as connection:
            try:
                head = self._head(connection, lock=True)
            except (Fault, InputError) as error:
                return [error.message]
            rows = connection.execute(sql.select(ROWS).order_by(ROWS.c.sequence)).all()
        found, place = [], self.start
        for row in rows:
            found += [f"row {number} is missing" for number in range(place.length + 1, row.sequence)][:100]
            if row.sequence > head.length:
                found.append(f"row {row.sequence} was added behind the end")
            # Against the seal stored before it: one altered row is told once, not with all that follow.
            elif not hmac.compare_digest(row.mac, self._row_mac(place.mac, row.sequence, row.body)):
                found.append(f"row {row.sequence} does not bear its seal")
            place = Position(row.sequence, row.mac)
        found += [f"row {number} is missing" for number in range(place.length + 1, head.length + 1)][:100]
        if not found and place != head:
            found.append(f"row {place.length} is not the one the head names")
        return found

    def _head(self, connection: sql.Connection, *, lock: bool) -> Position:
        if lock:
            limit_waiting(connection)
        # On SQLite every transaction of the workspace is alone already, and FOR UPDATE is left out.
        query = sql.select(HEAD).with_for_update() if lock else sql.select(HEAD)
        rows = connection.execute(query).all()
        if len(rows) != 1:
            raise _altered(f"it has {len(rows)} heads instead of one")
        (row,) = rows
        if row.key_id != self._key_id:
            raise InputError(
                "the privacy ledger was written with another key",
                hint="copy the key file from the machine that made the ledger",
            )
        place = Position(row.length, row.last_mac)
        if not hmac.compare_digest(row.mac, self._head_values(place)["mac"]):
            raise _altered("its head does not bear its seal")
        if self._memory is not None and place.length < self._memory.length:
            raise Fault(
                f"the privacy ledger has {place.length} rows, but this machine has seen {self._memory.length}: "
                "an older copy was put in its place",
                hint=f"put the newer one back; {self._memory.path} belongs to one ledger only",
            )
        return place

    def _recall(self, number: int, mac: str) -> None:
        if self._memory is not None and not self._memory.agrees(number, mac):
            raise Fault(
                f"the privacy ledger is not the one this machine has seen: row {number} differs",
                hint=f"put the right copy back; {self._memory.path} belongs to one ledger only",
            )

    def _create_head(self) -> None:
        values = {"id": 1, "key_id": self._key_id, **self._head_values(self.start)}
        with self._workspace.transaction() as connection:
            if connection.scalar(sql.select(sql.func.count()).select_from(HEAD)):
                self._head(connection, lock=False)
                return
            if connection.scalar(sql.select(sql.func.count()).select_from(ROWS)):
                raise _altered("it has rows but no head")
        with contextlib.suppress(IntegrityError), self._workspace.transaction() as connection:
            connection.execute(sql.insert(HEAD).values(values))  # another process may be the first
        with self._workspace.transaction() as connection:
            self._head(connection, lock=False)

    def _head_values(self, place: Position) -> dict[str, Any]:
        mac = self._seal(f"head|{place.length}|{place.mac}".encode())
        return {"length": place.length, "last_mac": place.mac, "mac": mac}

    def _row_mac(self, previous: str, number: int, body: str) -> str:
        return self._seal(f"row|{previous}|{number}|{body}".encode())

    def _seal(self, content: bytes) -> str:
        return hmac.digest(self._key, content, "sha256").hex()


def has_ledger(workspace: Workspace) -> bool:
    """Whether the workspace holds a ledger, empty or not."""
    with workspace.transaction() as connection:
        if not sql.inspect(connection).has_table(HEAD.name):
            return False
        return bool(connection.scalar(sql.select(sql.func.count()).select_from(HEAD)))


def _create_tables(workspace: Workspace) -> None:
    for last in (False, True):
        try:
            workspace.create(METADATA)
            return
        except (IntegrityError, ProgrammingError):
            # On PostgreSQL two processes that create a table at once may both find it missing.
            if last:
                raise


def _altered(what: str) -> Fault:
    return Fault(f"the privacy ledger was altered: {what}", hint=_DAMAGE_HINT)
