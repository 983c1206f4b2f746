"""``lepton agent``: one reading for people and machines, and the light process it becomes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from leptonai.cli import agent as command
from leptonai.cli.agent import shown_value
from leptonai.core.errors import InputError

PROGRAM = (
    "import typer; from leptonai.cli import agent; app = typer.Typer(); app.command()(agent.agent); "
    "app(prog_name='lepton agent')"
)


def run(*words: str) -> str:
    app = typer.Typer()
    app.command(epilog=command.EXAMPLES)(command.agent)
    done = CliRunner().invoke(app, list(words), env={"COLUMNS": "80"})
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done.stdout


def test_one_reading_is_a_table_that_fits() -> None:
    text = run("--once", "--node", "a")
    assert "node_memory_MemTotal_bytes" in text
    assert "node_cpu_seconds_total {cpu=all, mode=user}" in text
    assert all(len(line) <= 80 for line in text.splitlines())


def test_sources_say_why_they_are_absent() -> None:
    text = run("--sources")
    assert "cpu" in text
    found = json.loads(run("--sources", "--json"))
    assert found["sources"]["cpu"] == {"present": True}
    assert all(each["present"] or each["reason"] for each in found["sources"].values())
    assert "values" not in found


def test_one_reading_as_json() -> None:
    found = json.loads(run("--once", "--json", "--node", "b"))
    by_name = {each["name"]: each for each in found["values"]}
    total = by_name["node_memory_MemTotal_bytes"]
    assert total["labels"] == {"node": "b"}
    assert (total["unit"], total["source"]) == ("bytes", "memory")
    assert total["value"] > 1e6
    assert abs(found["at_seconds"] - time.time()) < 60.0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "nobody would get the samples"),
        (("--json",), "--json goes with"),
        (("--collector", "nowhere"), "address cannot be used"),
        (("--listen", "9100"), "HOST:PORT"),
        (("--spool", "x", "--interval", "0"), "interval"),
    ],
)
def test_wrong_words_are_refused_before_anything_starts(words: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(InputError) as refused:
        run(*words)
    assert sentence in str(refused.value)


def test_values_are_short() -> None:
    assert shown_value(0.0, "bytes") == "0 B"
    assert shown_value(123.456, "watts") == "123.5 W"
    assert shown_value(1.98e9, "hertz") == "1.98 GHz"
    assert shown_value(float("nan"), "") == "nan"


def test_the_command_becomes_the_light_process(tmp_path: Path) -> None:
    words = ["--spool", str(tmp_path / "spool"), "--node", "a b", "--interval", "0.1"]
    said = tmp_path / "said"
    with (
        said.open("w") as file,
        subprocess.Popen([sys.executable, "-c", PROGRAM, *words], stderr=file) as process,
    ):
        try:
            end = time.monotonic() + 20.0
            while "node a b:" not in said.read_text():
                assert process.poll() is None, said.read_text()
                assert time.monotonic() < end
                time.sleep(0.05)
            words_now = Path(f"/proc/{process.pid}/cmdline").read_bytes().split(b"\0")
            assert b"leptonai.operations.agent" in words_now
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            assert pages * 4096 < 60e6
            process.send_signal(signal.SIGTERM)
            assert process.wait(15.0) == 0
        finally:
            if process.poll() is None:
                process.kill()
