from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from leptonai.core.clock import FakeClock
from leptonai.core.errors import InputError
from leptonai.core.workspace import Workspace
from leptonai.security.privacy.ledger.key import make_key, read_key
from leptonai.security.privacy.ledger.ledger import open_ledger
from tests.security.privacy.ledger.cases import DATA, NOW


def test_the_key_is_made_once_whoever_comes_first(tmp_path: Path) -> None:
    path = tmp_path / "home" / "ledger.key"
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(lambda _: make_key(path), range(16)))
    assert keys == {read_key(path)}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in path.parent.iterdir()] == ["ledger.key"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_may_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "ledger.key"
    make_key(path)
    path.chmod(mode)
    with pytest.raises(InputError, match="may be read by others") as caught:
        read_key(path)
    assert "chmod 600" in str(caught.value)


@pytest.mark.parametrize("content", ["", "aa" * 31, "aa" * 33, "zz" * 32, "aa" * 32 + "\nmore"])
def test_what_is_no_key_is_refused_without_being_shown(tmp_path: Path, content: str) -> None:
    path = tmp_path / "ledger.key"
    path.write_text(content)
    path.chmod(0o600)
    with pytest.raises(InputError, match="holds no ledger key") as caught:
        read_key(path)
    assert "aaaa" not in str(caught.value)


def test_a_link_is_no_key(tmp_path: Path) -> None:
    make_key(tmp_path / "real")
    (tmp_path / "ledger.key").symlink_to("real")
    with pytest.raises(InputError, match="cannot be read"):
        read_key(tmp_path / "ledger.key")


def test_a_ledger_without_its_key_is_told_not_given_a_new_one(workspace: Workspace, tmp_path: Path) -> None:
    path, clock = tmp_path / "ledger.key", FakeClock(start_seconds=NOW)
    open_ledger(workspace, path, clock).register(DATA)
    path.rename(tmp_path / "away")
    with pytest.raises(InputError, match="the key of the privacy ledger is missing"):
        open_ledger(workspace, path, clock)
    assert not path.exists()
    make_key(path)
    with pytest.raises(InputError, match="written with another key"):
        open_ledger(workspace, path, clock)
    (tmp_path / "away").replace(path)
    assert open_ledger(workspace, path, clock).find("patients") == DATA


def test_the_key_enters_no_row_and_no_repr(tmp_path: Path) -> None:
    key = make_key(tmp_path / "ledger.key")
    with Workspace.open(f"sqlite:///{tmp_path / 'w.db'}") as workspace:
        ledger = open_ledger(workspace, tmp_path / "ledger.key", FakeClock(start_seconds=NOW))
        ledger.register(DATA)
        shown = repr(ledger) + repr(vars(ledger))
    stored = b"".join(each.read_bytes() for each in tmp_path.glob("w.db*"))
    assert key.hex() not in shown
    assert key not in stored
    assert key.hex().encode() not in stored
