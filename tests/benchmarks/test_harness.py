from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from benchmarks.harness import Contest, Contestant, ContestantFailed, Results, hold, run_once, turns
from benchmarks.progress import Mark, Progress, Unmeasured, from_report

STEPS = """
import json, os, sys, time
now = time.time()
with open(sys.argv[1], "w") as file:
    for values in ({"first_step_at": now}, {"examples": 1, "at": now}, {"examples": 101, "at": now + 1.0}):
        print(json.dumps(values), file=file)
"""


def read(folder: Path) -> Progress:
    return from_report((folder / "report").read_text().splitlines())


def contestant(name: str, program: str = STEPS, **environment: str) -> Contestant:
    def command(folder: Path, turn: int) -> list[str]:
        return [sys.executable, "-c", program, str(folder / "report")]

    return Contestant(name=name, command=command, read=read, environment=environment)


def test_contestants_take_turns() -> None:
    order = [(turn, each.name) for turn, each in turns([contestant("a"), contestant("b")], 2)]
    assert order == [(0, "a"), (0, "b"), (1, "a"), (1, "b")]


def test_a_run_is_read_and_its_folder_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = time.time()
    run = run_once(contestant("a"), turn=0)
    assert run.progress.marks[-1] == Mark(at_seconds=run.progress.first_step_at_seconds + 1.0, examples=101)
    assert before <= run.started_at_seconds <= run.progress.first_step_at_seconds <= run.ended_at_seconds
    assert run.peak_bytes is None
    assert list(tmp_path.iterdir()) == []


def test_memory_is_sampled_when_asked_for() -> None:
    run = run_once(contestant("a"), turn=0, sample_memory=True)
    assert run.peak_bytes is not None
    assert run.peak_bytes > 0


def test_a_contestant_sees_its_own_variables() -> None:
    program = "import os, sys\nif os.environ['COLOUR'] != 'red': sys.exit('not red')\n" + STEPS
    run_once(contestant("a", program, COLOUR="red"), turn=0)
    with pytest.raises(ContestantFailed, match="not red"):
        run_once(contestant("a", program, COLOUR="blue"), turn=0)


def test_a_failing_contestant_sits_out_and_its_words_are_kept() -> None:
    program = "import sys; sys.stderr.write('no such luck'); sys.exit(3)"
    contest = Contest(name="speed", contestants=(contestant("bad", program), contestant("good")))
    results = hold([contest], num_runs=2)
    assert len(results.of("speed", "good")) == 2
    with pytest.raises(Unmeasured, match=r"exit code 3:\nno such luck"):
        results.of("speed", "bad")


def test_runs_that_were_not_held_are_unmeasured() -> None:
    with pytest.raises(Unmeasured, match="did not run"):
        Results(runs={}).of("speed", "a")


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def within_ten_seconds(holds: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + 10.0
    while not holds():
        if time.monotonic() > deadline:
            return False
        os.sched_yield()
    return True


def test_a_process_that_a_contestant_leaves_behind_is_ended(tmp_path: Path) -> None:
    left = tmp_path / "pid"
    program = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
        f"open({str(left)!r}, 'w').write(str(child.pid))\n" + STEPS
    )
    run_once(contestant("a", program), turn=0)
    pid = int(left.read_text())
    assert within_ten_seconds(lambda: is_gone(pid))


def test_a_contestant_that_hangs_is_ended_with_all_its_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.harness.RUN_LIMIT_SECONDS", 1.0)
    left = tmp_path / "pid"
    # The child leaves the session, as daemons do.
    program = (
        "import signal, subprocess, sys\n"
        "words = [sys.executable, '-c', 'import signal; signal.pause()']\n"
        "child = subprocess.Popen(words, start_new_session=True)\n"
        f"open({str(left)!r}, 'w').write(str(child.pid))\n"
        "signal.pause()\n"
    )
    with pytest.raises(ContestantFailed, match="still running"):
        run_once(contestant("a", program), turn=0)
    pid = int(left.read_text())
    assert within_ten_seconds(lambda: is_gone(pid))
