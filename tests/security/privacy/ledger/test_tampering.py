from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sql

from leptonai.core.clock import FakeClock
from leptonai.core.errors import Fault, InputError, Refused
from leptonai.core.workspace import Workspace
from leptonai.security.privacy.ledger.chain import HEAD, ROWS
from leptonai.security.privacy.ledger.ledger import Ledger, open_ledger
from leptonai.security.privacy.ledger.memory import Memory
from tests.security.privacy.ledger.cases import DATA, DELTA, NOW, ledger_on, reserve

# register, grant, reserve a, reserve b, lease a, close b
LENGTH = 6
Change = Callable[[sql.Connection], object]


def written(workspace: Workspace) -> Ledger:
    ledger = ledger_on(workspace)
    ledger.grant(DATA, "all", "all", epsilon=5, delta=DELTA)
    reserve(ledger, "a", 8)
    reserve(ledger, "b", 8)
    ledger.lease("a", 8)
    ledger.close("b", 0)
    return ledger


def row(connection: sql.Connection, number: int) -> sql.Row[tuple[int, str, str]]:
    return connection.execute(sql.select(ROWS).where(ROWS.c.sequence == number)).one()


def edit(connection: sql.Connection) -> None:
    body = json.loads(row(connection, 3).body)
    body["charges"][0]["count"] = 1
    text = json.dumps(body, sort_keys=True, separators=(",", ":"))
    connection.execute(sql.update(ROWS).where(ROWS.c.sequence == 3).values(body=text))


def raise_grant(connection: sql.Connection) -> None:
    text = row(connection, 2).body.replace('"epsilon":5.0', '"epsilon":50.0')
    assert "50.0" in text
    connection.execute(sql.update(ROWS).where(ROWS.c.sequence == 2).values(body=text))


def delete(connection: sql.Connection) -> None:
    connection.execute(sql.delete(ROWS).where(ROWS.c.sequence == 3))


def close_ranks(connection: sql.Connection) -> None:
    delete(connection)
    for number in range(4, LENGTH + 1):
        connection.execute(sql.update(ROWS).where(ROWS.c.sequence == number).values(sequence=number - 1))
    connection.execute(sql.update(HEAD).values(length=LENGTH - 1))


def swap(connection: sql.Connection) -> None:
    third, fourth = row(connection, 3), row(connection, 4)
    for number, other in ((3, fourth), (4, third)):
        values = {"body": other.body, "mac": other.mac}
        connection.execute(sql.update(ROWS).where(ROWS.c.sequence == number).values(**values))


def insert(connection: sql.Connection) -> None:
    last = row(connection, LENGTH)
    connection.execute(sql.insert(ROWS).values(sequence=LENGTH + 1, body=last.body, mac=last.mac))


def truncate(connection: sql.Connection) -> None:
    connection.execute(sql.delete(ROWS).where(ROWS.c.sequence > 4))


def truncate_with_head(connection: sql.Connection) -> None:
    truncate(connection)
    connection.execute(sql.update(HEAD).values(length=4, last_mac=row(connection, 4).mac))


def seal(connection: sql.Connection) -> None:
    connection.execute(sql.update(ROWS).where(ROWS.c.sequence == 3).values(mac="0" * 64))


def head(connection: sql.Connection) -> None:
    connection.execute(sql.update(HEAD).values(mac="0" * 64))


def behead(connection: sql.Connection) -> None:
    connection.execute(sql.delete(HEAD))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (edit, "row 3 does not bear its seal"),
        (raise_grant, "row 2 does not bear its seal"),
        (delete, "row 3 is missing"),
        (close_ranks, "its head does not bear its seal"),
        (swap, "row 3 does not bear its seal"),
        (insert, f"row {LENGTH + 1} was added behind"),
        (truncate, "row 5 is missing"),
        (truncate_with_head, "its head does not bear its seal"),
        (seal, "row 3 does not bear its seal"),
        (head, "its head does not bear its seal"),
        (behead, "0 heads instead of one"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_altered_rows_are_found_and_nothing_is_charged(
    workspace: Workspace, change: Change, named: str
) -> None:
    running = written(workspace)
    assert running.verify() == []
    with workspace.transaction() as connection:
        change(connection)
    assert named in "; ".join(running.verify())
    with pytest.raises(Fault, match="ledger was altered"):
        reserve(ledger_on(workspace), "new", 1)
    with workspace.transaction() as connection:
        bodies = connection.scalars(sql.select(ROWS.c.body)).all()
    assert not any('"new"' in body for body in bodies)


def test_what_is_altered_behind_a_running_process_does_not_move_its_budget(workspace: Workspace) -> None:
    running = written(workspace)
    with workspace.transaction() as connection:
        raise_grant(connection)
    with pytest.raises(Refused):
        reserve(running, "c", 40)


def test_one_altered_row_is_told_once(workspace: Workspace) -> None:
    ledger = written(workspace)
    with workspace.transaction() as connection:
        edit(connection)
        connection.execute(sql.delete(ROWS).where(ROWS.c.sequence == 5))
    assert ledger.verify() == [
        "row 3 does not bear its seal",
        "row 5 is missing",
        "row 6 does not bear its seal",
    ]


def test_rows_of_another_ledger_do_not_fit(tmp_path: Path) -> None:
    with Workspace.open("sqlite://") as ours, Workspace.open("sqlite://") as theirs:
        written(ours)
        Ledger(theirs, key=bytes(32), clock=FakeClock(start_seconds=NOW))
        with pytest.raises(InputError, match="another key"):
            ledger_on(theirs)


def test_an_older_copy_put_in_the_place_of_the_ledger_is_seen(tmp_path: Path) -> None:
    path, key = tmp_path / "w.db", tmp_path / "ledger.key"
    clock = FakeClock(start_seconds=NOW)

    def ledger(workspace: Workspace) -> Ledger:
        return open_ledger(workspace, key, clock)

    with Workspace.open(f"sqlite:///{path}") as workspace:
        ledger(workspace).register(DATA)
    older = path.read_bytes()
    with Workspace.open(f"sqlite:///{path}") as workspace:
        ledger(workspace).grant(DATA, "all", "all", epsilon=1, delta=DELTA)
    newer = path.read_bytes()
    for content, words in ((older, "1 rows, but this machine has seen 2"), (b"", "0 rows, but this machine")):
        path.write_bytes(content)
        with Workspace.open(f"sqlite:///{path}") as workspace, pytest.raises(Fault, match=words):
            ledger(workspace).budgets()
    path.write_bytes(newer)
    with Workspace.open(f"sqlite:///{path}") as workspace:
        assert len(ledger(workspace).budgets()) == 1
        # Another history of the same length under the same key.
        with workspace.transaction() as connection:
            connection.execute(sql.delete(ROWS))
            connection.execute(sql.delete(HEAD))
        fork = Ledger(workspace, key=bytes.fromhex(key.read_text()), clock=FakeClock(start_seconds=NOW + 5))
        fork.register(DATA)
        fork.grant_default(epsilon=9, delta=DELTA)
        with pytest.raises(Fault, match="row 2 differs"):
            ledger(workspace).budgets()


def test_the_memory_only_grows_and_damage_is_told(tmp_path: Path) -> None:
    first, second = Memory(tmp_path / "seen"), Memory(tmp_path / "seen")
    first.advance(5, "a" * 64)
    second.advance(3, "b" * 64)
    assert Memory(tmp_path / "seen").length == 5
    (tmp_path / "seen").write_text("what?")
    with pytest.raises(Fault, match="is damaged"):
        Memory(tmp_path / "seen")
