"""Each file of ``tests/transcripts`` is a session in a shell: its commands are run and must say the same again.

A line ``$ COMMAND`` is run by ``sh`` on the stage (see ``stage.py``). Below it stand its standard output, its
standard error with ``2| `` before each line, and its exit code. After a line ``# numbers vary`` all numbers are
the same, and so are units of time and lengths of blanks. Write them anew with:
LEPTON_RECORD=1 pytest tests/cli/test_transcripts.py
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TRANSCRIPTS = Path(__file__).parents[1] / "transcripts"
SUBSET = Path(__file__).parents[1] / "data"
LOOSE = "# numbers vary"


@pytest.mark.parametrize("path", sorted(TRANSCRIPTS.glob("*.txt")), ids=lambda path: path.stem)
def test_commands_say_what_the_transcript_shows(path: Path, stage: Path) -> None:
    shutil.copytree(SUBSET, stage / "data")
    written = path.read_text(encoding="utf-8")
    found = replay(written, stage)
    if os.environ.get("LEPTON_RECORD"):
        path.write_text(found, encoding="utf-8")
    assert found == written


def test_every_command_has_a_transcript() -> None:
    from leptonai.cli.app import build_command
    from leptonai.cli.reference import commands

    shown = "\n".join(path.read_text(encoding="utf-8") for path in TRANSCRIPTS.glob("*.txt"))
    names = [" ".join(names) for names, _ in commands(build_command(), ("lepton",))]
    assert [name for name in names if f"\n$ {name}" not in f"\n{shown}"] == []


def replay(transcript: str, stage: Path) -> str:
    """The transcript as it comes out now."""
    lines: list[str] = []
    loose = False
    for line in transcript.splitlines():
        if line.startswith("#"):
            loose = loose or line == LOOSE
            lines.append(line)
        elif line.startswith("$ "):
            lines += ["", line, *run(line[2:], stage, loose=loose)]
    return "\n".join(lines).strip("\n") + "\n"


def run(command: str, stage: Path, *, loose: bool) -> list[str]:
    """What one command says, normalised, and its exit code."""
    environment = {
        "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin",
        "HOME": str(stage),
        "LEPTON_HOME": str(stage / "home"),
        "COLUMNS": "80",
        "TZ": "UTC",
        "LANG": "C.UTF-8",
    }
    done = subprocess.run(
        ["sh", "-c", command], cwd=stage, env=environment, capture_output=True, text=True, timeout=120
    )
    out, err = (
        [normalised(line, stage, loose=loose) for line in text.splitlines()]
        for text in (done.stdout, done.stderr)
    )
    lines = [*out, *(f"2| {line}".rstrip() for line in err)]
    if loose:  # a slow machine reports progress more often
        lines = [
            line for line, before in zip(lines, ["", *lines], strict=False) if line != before or not line
        ]
    return [*lines, f"[exit {done.returncode}]"]


def normalised(line: str, stage: Path, *, loose: bool) -> str:
    """The line without what differs from one machine or moment to another."""
    line = line.replace(str(stage), "HERE")
    line = re.sub(r"\b\d{8}-\d{6}-[0-9a-f]{4}\b", "DATE-TIME-XXXX", line)
    line = re.sub(r"(?<![.\w])[0-9a-f]{16,64}\b", "DIGEST", line)
    line = re.sub(r"\b\d{4}-\d\d-\d\d \d\d:\d\d(:\d\d)?\b", "DATE TIME", line) if loose else line
    if loose:
        line = re.sub(r"\d+(,\d{3})*(\.\d+)?(e[-+]?\d+)?", "N", line)
        line = re.sub(r"\bN (ns|us|ms|s|min)\b", "N TIME", line)
        line = re.sub(r"(?<=\S) {2,}", "  ", line)
    return line.rstrip()
