from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from leptonai.core.disk import write_atomically
from leptonai.core.errors import Fault, InputError


def test_an_atomic_write_replaces_the_whole_file(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    for data in (b"a" * 1000, b"b"):
        write_atomically(path, data)
        assert path.read_bytes() == data
    assert [each.name for each in tmp_path.iterdir()] == ["plan.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, Fault), (errno.EIO, Fault), (errno.EROFS, InputError), (errno.EACCES, InputError)],
)
def test_a_failed_atomic_write_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int, kind: type[Exception]
) -> None:
    path = tmp_path / "plan.json"
    path.write_bytes(b"old")

    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(kind, match=os.strerror(number)):
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert [each.name for each in tmp_path.iterdir()] == ["plan.json"]


def test_an_atomic_write_into_no_directory_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written"):
        write_atomically(tmp_path / "none" / "plan.json", b"")
    (tmp_path / "taken").mkdir()
    with pytest.raises(InputError, match="cannot be written"):
        write_atomically(tmp_path / "taken", b"")
    assert [each.name for each in tmp_path.iterdir()] == ["taken"]
