"""Runs the code blocks of a page in the order a reader would, and compares what it shows loosely.

An HTML comment right before a block says what it is:

- ``<!-- file: NAME -->``: the block is the content of a file, written to NAME;
- ``<!-- not run: REASON -->``: the block is left out;
- ``<!-- runnable -->``: a ``python`` block to run as a program;
- ``<!-- interrupt -->``: a ``sh`` block that gets a Ctrl-C once its run has taken a few steps;
- ``<!-- background -->``: a ``sh`` block whose run goes on, from its first steps on, while the next block is run.

A ``sh`` block without a comment is run; a ``text`` block after it shows its output. Numbers, digests, names of
runs, paths, precision, memory format and the lengths of bars may differ, and so may the number of progress lines
and all of a drawing. A ``text`` block with a comment before it, such as ``<!-- the sentences vary -->``, is not
compared.

``python -m tests.tutorials.walk PAGE`` walks a page on the data of ``$LEPTON_DATA`` and writes what came into it.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
SUBSET = ROOT / "tests" / "data"
TIMEOUT_SECONDS = 200.0

_BLOCK = re.compile(
    r"^(?:<!-- (?P<note>[^\n]*?) -->\n)?```(?P<language>\w+)\n(?P<body>.*?)^```$", re.M | re.S
)
_DRAWING = re.compile("[\u2500-\u257f\u2800-\u28ff]")
_BAR = re.compile("[\u2580-\u259f]+")


@dataclass(frozen=True, kw_only=True)
class Block:
    """One fenced block: its language, what the comment before it says, its text and its line."""

    language: str
    note: str
    body: str
    line: int

    @property
    def is_run(self) -> bool:
        """Whether the block is a program the page has a reader run."""
        if self.note.startswith(("not run:", "file:")):
            return False
        return self.language == "sh" or self.note == "runnable"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text()
    return [
        Block(
            language=m["language"],
            note=m["note"] or "",
            body=m["body"],
            line=text.count("\n", 0, m.start()) + 1,
        )
        for m in _BLOCK.finditer(text)
    ]


def walk(
    page: Path, folder: Path, *, settings: str = "", data: str = str(SUBSET), reports: int = 3
) -> list[tuple[Block, str, str]]:
    """Do what the page says in ``folder``; returns (block, output shown, output found) where output is shown.

    Args:
        settings: added to every ``lepton train`` command, so that a small data set gives a run of fit length.
        data: the folders of data sets.
        reports: how often a run must have reported steps before it is interrupted.
    """
    env = environment(folder, data)
    compared = []
    found, ran = "", None
    background: tuple[Block, subprocess.Popen[str]] | None = None
    try:
        for block in blocks(page):
            if block.note.startswith("file: "):
                (folder / block.note.removeprefix("file: ")).write_text(block.body)
            elif block.note == "background":
                background = block, _start(block, folder, env, settings)
                _wait_for_steps(background[1], folder, reports)
            elif block.is_run:
                ran, found = block, _run(block, folder, env, settings, reports)
                if background is not None:
                    _finish(*background)
                    background = None
            elif block.language == "text" and ran is not None and block.note == "":
                compared.append((ran, block.body, found))
                ran = None
    finally:
        if background is not None:
            _kill(background[1])
    return compared


def environment(folder: Path, data: str) -> dict[str, str]:
    """These data sets, a home of its own, and this interpreter's commands first."""
    return {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
        "LEPTON_DATA": data,
        "LEPTON_HOME": str(folder / ".home"),
        "COLUMNS": "100",
        "PYTHONIOENCODING": "utf-8",
    }


def _start(block: Block, folder: Path, env: Mapping[str, str], settings: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", block.body]
    if block.language == "sh":
        text = re.sub(r"^(lepton train .*)$", rf"\1 {settings}", block.body, flags=re.M)
        command = ["bash", "-euo", "pipefail", "-c", text]
    return subprocess.Popen(
        command, cwd=folder, env=dict(env), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip


def _run(block: Block, folder: Path, env: Mapping[str, str], settings: str, reports: int) -> str:
    process = _start(block, folder, env, settings)
    if block.note != "interrupt":
        return _finish(block, process)
    try:
        _wait_for_steps(process, folder, reports)
        os.killpg(process.pid, signal.SIGINT)
    except BaseException:
        _kill(process)
        raise
    return _finish(block, process, expected=130)


def _finish(block: Block, process: subprocess.Popen[str], *, expected: int = 0) -> str:
    try:
        output, _ = process.communicate(timeout=TIMEOUT_SECONDS)
    except BaseException:
        _kill(process)
        raise
    assert process.returncode == expected, (
        f"line {block.line}: {block.body}ended with {process.returncode}:\n{output}"
    )
    return output


def _kill(process: subprocess.Popen[str]) -> None:
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def _wait_for_steps(process: subprocess.Popen[str], folder: Path, reports: int) -> None:
    """Until a run that is not over has reported steps a few times."""
    end = time.monotonic() + TIMEOUT_SECONDS
    while time.monotonic() < end and process.poll() is None:
        for journal in folder.glob("runs/*/events.jsonl"):
            text = journal.read_text()
            if text.count("step_done") >= reports and "run_ended" not in text:
                return
        time.sleep(0.02)
    raise AssertionError("the run ended, or took no step, before it could be interrupted")


def normalised(output: str) -> list[str]:
    """The lines of an output without what differs between machines and runs, each once.

    >>> normalised("step 12  evaluation: accuracy 0.9\\nstep 24  evaluation: accuracy 0.95\\n")
    ['step N evaluation: accuracy N']
    """
    lines: dict[str, None] = {}
    for line in output.splitlines():
        if not line.strip() or _DRAWING.search(line):
            continue
        line = _BAR.sub("", line)
        line = re.sub(r"\S*/\S*/\S*", "PATH", line)
        line = re.sub(r"\b[\w-]+-\d{8}-\d{6}-[0-9a-f]{4}\b", "RUN", line)
        line = re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d(:\d\d)?", "TIME", line)
        line = re.sub(r"\b[0-9a-f]{32,}\b", "DIGEST", line)
        line = re.sub(r"\d[\d,.:]*(e[-+]?\d+)?", "N", line)
        line = re.sub(r"\bN [numkMGT]?(s|min|h|B|KiB|MiB|GiB|FLOP)\b", r"N \1", line)
        line = re.sub(r"\bN (KiB|MiB|GiB)\b", "N B", line)
        line = re.sub(r"\bN (min|h)\b", "N s", line)
        line = re.sub(r"\bN s (left|for the whole run)", r"N \1", line)
        line = re.sub(r"\b(float|bfloat)N\b", "PRECISION", line)
        line = re.sub(r"\b(contiguous|channels_last)\b", "FORMAT", line)
        lines[" ".join(line.split())] = None
    return list(lines)


def rewritten(page: Path, shown: list[tuple[Block, str, str]], folder: Path) -> str:
    """The page with what was found in place of what it shows; paths become those of nobody in particular."""
    text = page.read_text()
    for block, expected, found in shown:
        found = found.replace(str(folder / ".home"), "/home/me/.local/share/lepton")
        found = found.replace(str(folder), f"/home/me/{folder.name}").strip("\n")
        found = "".join(line.rstrip() + "\n" for line in found.splitlines())
        before, after = block.body + "```\n```text\n", "```\n"
        assert text.count(before + expected + after) == 1, f"line {block.line}"
        text = text.replace(before + expected + after, before + found + after)
    return text


def main(page: Path) -> None:
    """Walk the page as a reader would and write down what came."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / page.stem
        folder.mkdir()
        # Some seconds of the run, on whole data sets.
        shown = walk(page, folder, data=os.environ.get("LEPTON_DATA", ""), reports=14)
        page.write_text(rewritten(page, shown, folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
