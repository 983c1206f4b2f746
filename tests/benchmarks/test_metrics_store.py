"""The benchmark's own parts: what it counts as lost, what it sends, what it reads."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
from benchmarks.metrics_store_kill import _missing, kill_and_compare, one_life
from benchmarks.metrics_store_runs import NUM_HOSTS, NUM_SERIES, _hardest, find_trace, main, requests
from benchmarks.metrics_store_trace import load, record

from benchmarks import metrics_store


def test_a_killed_writer_loses_nothing() -> None:
    found = kill_and_compare(2, seed=3)
    assert found["acknowledged"] > 0
    assert found["lost"] == 0


def test_a_lost_log_is_counted(tmp_path: Path) -> None:
    acknowledged = one_life(tmp_path, 0, random.Random(1))
    for path in [*tmp_path.glob("wal-*.log"), *tmp_path.glob("*.blk")]:
        path.unlink()
    lost, wrong = _missing(tmp_path, acknowledged, [])
    assert lost > 0
    assert wrong == 0


def test_a_recorded_trace_is_read_back_and_sent(tmp_path: Path) -> None:
    path = tmp_path / "host_metrics" / "hour.npz"
    path.parent.mkdir()
    record(path, 3, interval_seconds=0.01)
    names, times, values = load(path)
    assert values.shape == (3, len(names))
    assert "node_memory_MemFree_bytes" in names
    trace = _hardest(names, times, values, 3)
    assert len(trace[0]) == min(NUM_SERIES, len(names))
    assert len(set(trace[0])) == len(trace[0])
    assert sum(len(each) for each in requests(trace)) >= NUM_HOSTS


@pytest.mark.parametrize("what", ["ingest", "size", "query"])
def test_each_measurement_reports(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.metrics_store_runs.QUICK_SECONDS", 5)
    monkeypatch.setattr("os.sched_setaffinity", lambda *words: None)
    report = tmp_path / "report.json"
    monkeypatch.setattr("sys.argv", ["runs", "--report", str(report), "--what", what, "--quick"])
    main()
    numbers = json.loads(report.read_text())["numbers"]
    assert all(np.isfinite(value) for value in numbers.values())


def test_the_figures_are_the_promised_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    goals = {figure.name: (figure.goal, figure.better) for figure in metrics_store.FIGURES}
    assert goals["ingest_samples_per_second"] == (150_000, "higher")
    assert goals["bytes_per_sample"] == (2.0, "lower")
    assert goals["acknowledged_lost"] == (0, "lower")
    monkeypatch.setenv("LEPTON_DATA", "/nowhere")
    assert "50 times" in find_trace(2)[1]
