"""What the processes of a run are doing, line by line: their stacks, taken from outside by py-spy.

A hung process cannot be asked; py-spy reads its memory instead. It may not on every machine: where the kernel or the
container forbids it, or py-spy is not installed, the text says so.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

DUMP_SECONDS = 5.0
"""For all processes together: they are read at the same time, each in a fraction of a second."""
MAX_OUTPUT_BYTES = 2**20
"""Of one process; a hundred threads of fifty frames take half of it."""
MAX_FRAMES = 200
"""Of one thread that are written: more is an endless recursion."""
POLL_SECONDS = 0.02

Command = Callable[[int], Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Stacks:
    """The stacks of one process as text, innermost frame first; or, in ``problem``, why there are none."""

    pid: int
    text: str
    problem: str = ""


def py_spy_command(pid: int) -> Sequence[str]:
    """How py-spy is asked. ``--nonblocking``: it does not stop the process, as one that is stopped already needs.

    It is looked for beside the interpreter first; without it the answer is empty.
    """
    beside = Path(sys.executable).with_name("py-spy")
    found = str(beside) if beside.is_file() else shutil.which("py-spy")
    return [found, "dump", "--pid", str(pid), "--json", "--nonblocking"] if found else []


def dump_stacks(
    pids: Mapping[int, int], *, within_seconds: float = DUMP_SECONDS, command: Command = py_spy_command
) -> dict[int, Stacks]:
    """The stacks of several processes, read at the same time.

    Args:
        pids: by rank, or by whatever else the answer is to be found under.
        within_seconds: for all together; a reader that takes longer is ended.
        command: what to run for a process; it prints py-spy's JSON.
    """
    until = time.monotonic() + within_seconds
    with contextlib.ExitStack() as stack:
        readers = {key: (pid, _start(command(pid), stack)) for key, pid in pids.items()}
        return {key: _read(pid, reader, until) for key, (pid, reader) in readers.items()}


_Reader = tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes]]


def _start(words: Sequence[str], stack: contextlib.ExitStack) -> _Reader | str:
    if not words:
        return "py-spy is not installed: pip install 'openlepton[operations]'"
    files = [stack.enter_context(tempfile.TemporaryFile()) for _ in range(2)]  # noqa: SIM115
    out, err = files
    try:
        process = subprocess.Popen(list(words), stdin=subprocess.DEVNULL, stdout=out, stderr=err)
    except OSError as error:
        return f"{words[0]} cannot be run: {error.strerror}"
    stack.callback(_end, process)
    return process, out, err


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()


def _read(pid: int, reader: _Reader | str, until: float) -> Stacks:
    if isinstance(reader, str):
        return Stacks(pid=pid, text="", problem=reader)
    process, out, err = reader
    try:
        code = process.wait(timeout=max(POLL_SECONDS, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        return Stacks(pid=pid, text="", problem="its stacks could not be read in time")
    if code != 0:
        return Stacks(pid=pid, text="", problem=_why(_content(err), code))
    try:
        return Stacks(pid=pid, text=stacks_text(json.loads(_content(out))))
    except (ValueError, TypeError, KeyError, AttributeError):
        return Stacks(pid=pid, text="", problem="its stacks could not be understood")


def _content(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(MAX_OUTPUT_BYTES).decode(errors="replace")


def _why(said: str, code: int) -> str:
    if "ermission" in said:
        return "its stacks may not be read here: it needs CAP_SYS_PTRACE, or root"
    lines = [line.removeprefix("Error: ") for line in said.splitlines() if line.strip()]
    return f"its stacks could not be read: {lines[0] if lines else f'exit status {code}'}"


def stacks_text(threads: Sequence[Mapping[str, Any]]) -> str:
    """py-spy's JSON as text, the main thread first.

    >>> frame = {"name": "step", "filename": "a/loop.py", "short_filename": "loop.py", "line": 7}
    >>> print(stacks_text([{"thread_name": "MainThread", "active": True, "owns_gil": False, "frames": [frame]}]))
    thread MainThread (running)
      step (a/loop.py:7)
    """
    parts = []
    for thread in sorted(threads, key=lambda each: each.get("thread_name") != "MainThread"):
        name = thread.get("thread_name") or f"id {thread.get('thread_id')}"
        state = "running" if thread.get("active") else "waiting"
        held = ", holds the interpreter's lock" if thread.get("owns_gil") else ""
        frames = thread["frames"]
        lines = [f"  {each['name']} ({each['filename']}:{each['line']})" for each in frames[:MAX_FRAMES]]
        more = len(frames) - MAX_FRAMES
        lines += [f"  ... {more} more"] if more > 0 else []
        parts.append("\n".join([f"thread {name} ({state}{held})", *lines]))
    return "\n\n".join(parts)
