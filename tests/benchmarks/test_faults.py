"""How the fault benchmark counts and times; and, slowly, that real kills lose and repeat nothing."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from benchmarks.faults_runs import count_errors
from benchmarks.harness import SAME_FOR_ALL, Results
from benchmarks.killing import Killer
from benchmarks.progress import Progress, Run, Unmeasured

from benchmarks import faults
from leptonai.core.events import Staleness

ROOT = Path(__file__).resolve().parents[2]


def test_percentiles_are_values_that_were_measured() -> None:
    values = [float(number) for number in range(1, 201)]
    assert faults.percentile(values, 0.99) == 198.0
    assert faults.percentile(values, 0.5) == 100.0
    assert faults.percentile([5.0], 0.99) == 5.0
    with pytest.raises(Unmeasured):
        faults.percentile([], 0.5)


def test_an_example_lost_and_one_repeated_do_not_cancel() -> None:
    fine = np.full(8, -3.0, np.float32)
    wrong = fine.copy()
    wrong[1], wrong[5] = -2.0, -5.0
    assert count_errors([fine, fine], epochs=3) == (0, 0)
    assert count_errors([fine, wrong], epochs=3) == (1, 2)


def test_a_worker_has_pushed_once_its_clock_moves() -> None:
    from benchmarks.killing import _Advance

    def at(clock: int) -> Staleness:
        return Staleness(
            at_seconds=0.0, step=1, histogram={}, clocks={"1": clock}, dropped=0, refused=0,
            bytes_sent=0, bytes_received=0,
        )  # fmt: skip

    advance = _Advance("1")
    assert [advance(at(clock)) for clock in (7, 7, 8)] == [False, False, True]


def test_a_killer_says_when_there_is_nothing_to_kill(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.killing.PATIENCE_SECONDS", 0.05)
    ended: list[bool] = []
    killer = Killer(
        role="server", count=1, gap_seconds=0.0, wants_warm=False, seed=0, done=lambda: ended.append(True)
    )
    killer._run()
    assert ended == [True]
    assert "no recovery within" in killer.problem


def test_recoveries_of_all_runs_are_pooled() -> None:
    def run(values: list[float]) -> Run:
        progress = Progress(samples={"working": values})
        return Run(contestant="x", started_at_seconds=0.0, ended_at_seconds=1.0, progress=progress)

    results = Results(runs={faults.RECOVERY: {faults.SERVERS: [run([0.1, 0.2]), run([0.9])]}})
    assert faults.pooled("working", faults.SERVERS, results) == (0.1, 0.2, 0.9)
    assert faults.slowest_but_one_in_a_hundred(faults.SERVERS, results) == 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("part", "count"), [("random", 6), ("servers", 2), ("workers", 2)])
def test_kills_of_real_processes(part: str, count: int, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "benchmarks.faults_runs", part, "--count", str(count)]
    words += ["--report", str(tmp_path / "report.json")]
    variables = {**os.environ, **SAME_FOR_ALL, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    ended = subprocess.run(
        words, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=120, check=False
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    report = json.loads((tmp_path / "report.json").read_text())
    if part == "random":
        assert report["kills"] == count
        assert [report[name] for name in ("pushes_lost", "lost", "repeated")] == [0, 0, 0]
        assert [report[name] for name in ("lost_by_books", "repeated_by_books")] == [0, 0]
    else:
        assert len(report["working"]) + len(report["not_warm"]) == count
        assert all(0.0 < value < 60.0 for value in report["working"])
