from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from leptonai.cli.app import run
from tests.cli.stage import set_stage


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with jobs and written runs, which is also the current one."""
    set_stage(tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, value in {"LEPTON_HOME": str(tmp_path / "home"), "COLUMNS": "80", "TZ": "UTC"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LEPTON_DATA", raising=False)
    return tmp_path


@dataclass(frozen=True)
class Said:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


@pytest.fixture
def lepton(stage: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    """Runs one command in this process, on the stage."""

    def call(*words: str) -> Said:
        code = run(words)
        captured = capsys.readouterr()
        return Said(code, captured.out, captured.err)

    return call
