from __future__ import annotations

import importlib.util
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from sqlalchemy import Column, ForeignKey, Integer, MetaData, String, Table, insert, select, text
from sqlalchemy.exc import IntegrityError

from leptonai.core import workspace as module
from leptonai.core.errors import Fault, InputError
from leptonai.core.workspace import Workspace

METADATA = MetaData()
RUNS = Table("runs", METADATA, Column("id", Integer, primary_key=True), Column("name", String))
STEPS = Table("steps", METADATA, Column("run", ForeignKey("runs.id"), primary_key=True))


def url_of(path: Path) -> str:
    return f"sqlite:///{path}"


def names(workspace: Workspace) -> list[str]:
    with workspace.transaction() as connection:
        return list(connection.scalars(select(RUNS.c.name).order_by(RUNS.c.id)))


def test_what_is_committed_is_there_when_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "workspace.db"
    with Workspace.open(url_of(path)) as workspace:
        workspace.create(METADATA)
        workspace.create(METADATA)
        with workspace.transaction() as connection:
            connection.execute(insert(RUNS).values(name="first"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with Workspace.open(url_of(path)) as workspace:
        assert names(workspace) == ["first"]


def test_the_database_is_set_to_lose_nothing(tmp_path: Path) -> None:
    with Workspace.open(url_of(tmp_path / "w.db")) as workspace, workspace.transaction() as connection:
        pragmas = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        found = [connection.scalar(text(f"PRAGMA {name}")) for name in pragmas]
    assert found == ["wal", 2, 1, 30_000]


def test_a_transaction_that_raises_changes_nothing(tmp_path: Path) -> None:
    with Workspace.open(url_of(tmp_path / "w.db")) as workspace:
        workspace.create(METADATA)

        def fail_midway() -> None:
            with workspace.transaction() as connection:
                connection.execute(insert(RUNS).values(name="lost"))
                raise KeyError

        with pytest.raises(KeyError):
            fail_midway()
        assert names(workspace) == []


def test_a_broken_rule_of_a_table_reaches_the_room_that_owns_it(tmp_path: Path) -> None:
    with Workspace.open(url_of(tmp_path / "w.db")) as workspace:
        workspace.create(METADATA)
        with pytest.raises(IntegrityError), workspace.transaction() as connection:
            connection.execute(insert(STEPS).values(run=99))


def test_read_then_write_from_many_threads_loses_no_update(tmp_path: Path) -> None:
    path = tmp_path / "w.db"
    with Workspace.open(url_of(path)) as workspace:
        workspace.create(METADATA)
        with workspace.transaction() as connection:
            connection.execute(insert(RUNS).values(id=1, name="0"))

        def count(times: int) -> None:
            for _ in range(times):
                with workspace.transaction() as connection:
                    value = int(connection.scalar(select(RUNS.c.name)) or 0)
                    connection.execute(RUNS.update().values(name=str(value + 1)))

        threads = [threading.Thread(target=count, args=(10,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert names(workspace) == ["40"]


def test_a_committed_row_survives_kill_9(tmp_path: Path) -> None:
    program = (
        "import os, signal, sys; from leptonai.core.workspace import Workspace; from sqlalchemy import text\n"
        "w = Workspace.open(sys.argv[1])\n"
        "with w.transaction() as c: c.execute(text('create table t (x)'))\n"
        "with w.transaction() as c: c.execute(text('insert into t values (7)'))\n"
        "c = w.transaction().__enter__(); c.execute(text('insert into t values (8)'))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    url = url_of(tmp_path / "w.db")
    environment = {"PYTHONPATH": ":".join(sys.path)}
    subprocess.run([sys.executable, "-c", program, url], env=environment, check=False, timeout=60)
    with Workspace.open(url) as workspace, workspace.transaction() as connection:
        assert list(connection.scalars(text("select x from t"))) == [7]


@pytest.mark.parametrize(
    "url", ["", "nonsense", "mysql://host/db", "sqlite+nothing:///x.db", "postgres://h/d"]
)
def test_a_wrong_url_is_an_input_error(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError):
        Workspace.open(url)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_to_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file" / "w.db", tmp_path, Path("/proc/none/w.db")):
        with pytest.raises(InputError, match="cannot be opened for writing"):
            Workspace.open(url_of(place))


def test_a_file_that_is_no_database_is_a_fault_and_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "w.db"
    path.write_bytes(b"not a database, but somebody's text " * 100)
    before = path.read_bytes()
    with pytest.raises(Fault, match="the file is damaged"):
        Workspace.open(url_of(path))
    assert path.read_bytes() == before


def test_damage_found_later_is_a_fault(tmp_path: Path) -> None:
    path = tmp_path / "w.db"
    with Workspace.open(url_of(path)) as workspace:
        workspace.create(METADATA)
        with workspace.transaction() as connection:
            connection.execute(insert(RUNS), [{"name": "x" * 100} for _ in range(500)])
    data = bytearray(path.read_bytes())
    data[4096:] = b"\xa5" * (len(data) - 4096)
    path.write_bytes(data)
    with Workspace.open(url_of(path)) as workspace, pytest.raises(Fault, match="the file is damaged"):
        names(workspace)


def test_a_database_kept_locked_by_another_program_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BUSY_SECONDS", 0.05)
    path = tmp_path / "w.db"
    with Workspace.open(url_of(path)) as workspace:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Fault, match="kept it locked"), workspace.transaction():
            pass
        other.execute("ROLLBACK")
        other.close()
        with workspace.transaction():
            pass


@pytest.mark.skipif(importlib.util.find_spec("psycopg") is not None, reason="the driver is installed")
def test_postgresql_without_its_driver_names_the_extra() -> None:
    with pytest.raises(InputError, match=r"openlepton\[postgresql\]"):
        Workspace.open("postgresql://user:secret@127.0.0.1/db")


@pytest.mark.skipif(importlib.util.find_spec("psycopg") is None, reason="needs the driver of PostgreSQL")
def test_a_postgresql_that_does_not_answer_is_a_fault_without_its_password() -> None:
    with pytest.raises(Fault) as caught:
        Workspace.open("postgresql://user:secret@127.0.0.1:1/db")
    assert "secret" not in str(caught.value)


def test_values_of_statements_stay_out_of_messages(tmp_path: Path) -> None:
    with Workspace.open(url_of(tmp_path / "w.db")) as workspace:
        workspace.create(METADATA)
        with pytest.raises(IntegrityError) as caught, workspace.transaction() as connection:
            connection.execute(insert(RUNS), [{"id": 1, "name": "secret"}, {"id": 1, "name": "secret"}])
    assert "secret" not in str(caught.value)
