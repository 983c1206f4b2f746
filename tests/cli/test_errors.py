"""What becomes of errors: exit code, order of what is said, and the JSON form."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from leptonai.cli import app, runs
from leptonai.core.errors import Fault, InputError, LeptonError, Refused
from tests.cli.conftest import Said

Lepton = Callable[..., Said]


def fail_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(runs, "home_directory", failing)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InputError("wrong word"), 2),
        (Refused("not allowed"), 3),
        (Fault("disk gone"), 4),
        (LeptonError("odd"), 70),
        (ValueError("bug"), 70),
        (KeyboardInterrupt(), 130),
    ],
)
def test_every_kind_of_error_has_its_exit_code(
    lepton: Lepton, monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int
) -> None:
    fail_with(error, monkeypatch)
    said = lepton("runs", "list")
    assert said.code == code
    assert said.out == ""


def test_a_worker_traceback_comes_before_the_sentence_and_the_hint(
    lepton: Lepton, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(
        Fault("worker 1 failed", hint="try again", detail="Traceback:\n  [line 3]\nKeyError\n"), monkeypatch
    )
    said = lepton("runs", "list")
    assert said.err.splitlines() == [
        "Traceback:",
        "  [line 3]",
        "KeyError",
        "error: worker 1 failed",
        "  hint: try again",
    ]


def test_with_json_an_error_is_one_object_on_standard_output(
    lepton: Lepton, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(Fault("worker 1 failed", detail="Traceback"), monkeypatch)
    said = lepton("runs", "list", "--json")
    assert json.loads(said.out) == {
        "error": {
            "kind": "Fault", "exit_code": 4, "message": "worker 1 failed", "hint": None, "detail": "Traceback",
        }
    }  # fmt: skip
    assert said.code == 4


def test_a_bug_shows_its_traceback_and_asks_for_a_report(
    lepton: Lepton, monkeypatch: pytest.MonkeyPatch
) -> None:
    fail_with(ZeroDivisionError("by nothing"), monkeypatch)
    said = lepton("runs", "list", "--json")
    assert "Traceback (most recent call last)" in said.err
    assert "error: unexpected ZeroDivisionError: by nothing" in said.err
    assert "please report it" in said.err.splitlines()[-1]
    assert json.loads(said.out)["error"]["exit_code"] == 70


def test_what_people_wrote_is_never_taken_for_markup(lepton: Lepton) -> None:
    said = lepton("runs", "show", "[red]x[/red]:smile:")
    assert "[red]x[/red]:smile:" in said.err
    assert said.code == 2


def test_a_reader_that_leaves_early_is_no_error(stage: Path) -> None:
    words = [sys.executable, "-c", "from leptonai.cli import main; main()", "runs", "list", "--json"]
    for buffered in ("", "1"):
        reader, writer = os.pipe()
        os.close(reader)
        environment = {**os.environ, "PYTHONUNBUFFERED": buffered}
        done = subprocess.run(words, cwd=stage, env=environment, stdout=writer, stderr=subprocess.PIPE)
        os.close(writer)
        assert (done.returncode, done.stderr) == (0, b"")


def test_starting_the_command_imports_no_framework_and_nothing_heavy() -> None:
    heavy = {"torch", "tensorflow", "keras", "numpy", "matplotlib", "sqlalchemy", "psutil", "tensorboard"}
    program = (
        "import sys; from leptonai.cli.app import build_command; build_command();"
        f"print(sorted({heavy!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_help_of_every_command_has_text_for_every_word() -> None:
    from leptonai.cli.reference import commands

    for names, command in commands(app.build_command(), ("lepton",)):
        assert command.help, names
        for parameter in command.params:
            assert parameter.help, (names, parameter.name)
