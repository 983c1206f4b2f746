"""The one database: what outlives a run. SQLite in a file by default, PostgreSQL by URL for a team.

Rooms bring their own tables (SQLAlchemy ``MetaData``); this handle opens, creates and gives transactions.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sqlalchemy import URL, Connection, Engine, MetaData, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DatabaseError, IntegrityError, ProgrammingError

from leptonai.core.errors import Fault, InputError, LeptonError

BUSY_SECONDS = 30


class Workspace:
    """A handle on the database; make it with :meth:`open`. Usable from several threads and processes at once.

    >>> from sqlalchemy import Column, Integer, MetaData, Table, insert, select
    >>> metadata = MetaData()
    >>> notes = Table("notes", metadata, Column("id", Integer, primary_key=True))
    >>> with Workspace.open("sqlite://") as workspace:
    ...     workspace.create(metadata)
    ...     with workspace.transaction() as connection:
    ...         _ = connection.execute(insert(notes).values(id=7))
    ...         connection.scalar(select(notes.c.id))
    7
    """

    def __init__(self, engine: Engine, where: str) -> None:
        self._engine = engine
        self._where = where

    @classmethod
    def open(cls, url: str) -> Self:
        """Open a database, creating an SQLite file (mode 0600) and its directory where they are missing.

        Args:
            url: ``sqlite:///relative/path.db``, ``sqlite:////absolute/path.db``, ``sqlite://`` (in memory) or
                ``postgresql://user:password@host/name``.

        Raises:
            InputError: the URL is wrong, the file cannot be written to, or the driver is not installed.
            Fault: the database is damaged or does not answer.
        """
        try:
            parsed = make_url(url)
        except ArgumentError:
            # Without the URL itself, which may hold a password.
            raise InputError("the workspace URL cannot be read", hint=_URL_HINT) from None
        where = f"workspace {parsed.render_as_string(hide_password=True)}"
        if parsed.drivername == "sqlite":
            engine = _sqlite(parsed, where)
        elif parsed.drivername in ("postgresql", "postgresql+psycopg"):
            engine = _postgresql(parsed)
        else:
            raise InputError(f"{where}: unknown kind {parsed.drivername!r}", hint=_URL_HINT)
        workspace = cls(engine, where)
        try:
            with workspace.transaction():
                pass
        except BaseException:
            workspace.close()
            raise
        return workspace

    def create(self, metadata: MetaData) -> None:
        """Create the tables that are missing."""
        with self.transaction() as connection:
            metadata.create_all(connection)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction, committed at the end of the ``with`` block and rolled back if that raises.

        On SQLite only one transaction runs at a time; others wait up to 30 s. A committed one is on the disk.

        Raises:
            InputError: the database may not be written to.
            Fault: it is damaged, locked by another program, or out of space.
        """
        try:
            with self._engine.begin() as connection:
                yield connection
        except (IntegrityError, ProgrammingError):
            # Of the statement, not of the database: the room that wrote it knows what it means.
            raise
        except DatabaseError as error:
            raise _explain(self._where, error) from error

    def close(self) -> None:
        """Close all connections; again is allowed."""
        self._engine.dispose()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_URL_HINT = "write sqlite:////path/to/workspace.db or postgresql://user@host/name"


def _sqlite(url: URL, where: str) -> Engine:
    in_memory = url.database in (None, "", ":memory:")
    if not in_memory:
        _make_file(Path(str(url.database)), where)
    # hide_parameters: values of statements may be secrets and must not enter error messages.
    engine = create_engine(url, hide_parameters=True, connect_args={"timeout": BUSY_SECONDS})
    event.listen(engine, "connect", _set_up_sqlite)
    event.listen(engine, "begin", _begin_sqlite)
    return engine


def _make_file(path: Path, where: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise InputError(
            f"{where}: cannot be opened for writing: {error.strerror}", hint=_URL_HINT
        ) from error


def _set_up_sqlite(connection: Any, _record: object) -> None:
    # The driver must not begin transactions by itself: it would begin them too late, after the first read.
    connection.isolation_level = None
    for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
        connection.execute(f"PRAGMA {pragma}").close()


def _begin_sqlite(connection: Connection) -> None:
    # IMMEDIATE takes the write lock at once: taken midway, it fails without waiting if another wrote.
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _postgresql(url: URL) -> Engine:
    if importlib.util.find_spec("psycopg") is None:
        raise InputError(
            "a PostgreSQL workspace needs the extra `postgresql`",
            hint="pip install 'openlepton[postgresql]'",
        )
    return create_engine(url.set(drivername="postgresql+psycopg"), hide_parameters=True, pool_pre_ping=True)


def _explain(where: str, error: DatabaseError) -> LeptonError:
    reason = str(error.orig).strip().splitlines()[0] if str(error.orig).strip() else type(error.orig).__name__
    if "readonly" in reason or "unable to open" in reason or "read-only" in reason:
        return InputError(
            f"{where}: cannot be written to: {reason}", hint="check the rights of file and directory"
        )
    if "not a database" in reason or "malformed" in reason:
        return Fault(f"{where}: the file is damaged: {reason}", hint="put a copy back, or move the file away")
    if "locked" in reason:
        return Fault(f"{where}: another program has kept it locked for {BUSY_SECONDS} s")
    return Fault(f"{where}: {reason}")
