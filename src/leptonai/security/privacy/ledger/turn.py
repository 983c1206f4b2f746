"""Taking turns: who wants to reserve of the same data waits before composing, not after, and keeps nobody else.

Composing takes a tenth of a second and must see every earlier reservation. On PostgreSQL a turn is an advisory lock
of the data set; on SQLite a lock on a file beside the database, for all data sets. Leases and closings need no turn.
A turn only spares work: what is decided in it is checked against the books again before it is written.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import time
from collections.abc import Iterator

import sqlalchemy as sql

from leptonai.core.errors import Fault, InputError
from leptonai.core.workspace import Workspace

TURN_SECONDS = 120.0
"""How long to wait for others."""

_POLL_SECONDS = 0.01


@contextlib.contextmanager
def turn(workspace: Workspace, digest: str) -> Iterator[sql.Connection | None]:
    """Wait for a turn on a data set; it ends with the block.

    Yields the open transaction that has the turn (PostgreSQL), to be used for all statements, or None (SQLite).

    Raises:
        Fault: others have kept it for 2 minutes.
        InputError: the file beside the database cannot be written.
    """
    with workspace.transaction() as connection:
        if connection.dialect.name == "postgresql":
            limit_waiting(connection)
            name = hashlib.blake2b(digest.encode(), digest_size=8, person=b"ledger turn").digest()
            number = int.from_bytes(name, "big", signed=True)
            connection.execute(sql.select(sql.func.pg_advisory_xact_lock(number)))
            yield connection
            return
        database = connection.engine.url.database
    with _file_turn(f"{database}.turn") if database else contextlib.nullcontext():
        yield None


def limit_waiting(connection: sql.Connection) -> None:
    """Make PostgreSQL give up waiting for a lock in this transaction after :data:`TURN_SECONDS`."""
    if connection.dialect.name == "postgresql":
        connection.execute(sql.text(f"SET LOCAL lock_timeout = '{TURN_SECONDS:.0f}s'"))


@contextlib.contextmanager
def _file_turn(path: str) -> Iterator[None]:
    # Left lying when done: a process that waits for it holds it open, and must not wait on another file than
    # whoever comes next.
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {error.strerror}") from error
    deadline = time.monotonic() + TURN_SECONDS
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Fault(
                        f"the privacy ledger has been kept busy by another process for {TURN_SECONDS:.0f} s",
                        hint=f"see who holds {path} open",
                    ) from None
                time.sleep(_POLL_SECONDS)
        yield
    finally:
        os.close(descriptor)
