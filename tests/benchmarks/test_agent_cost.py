"""What the agent's cost is read from, and that a run measures what it says."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from benchmarks.agent_cost import AGENT, FIGURES, WORK
from benchmarks.agent_cost_agent import RunGauges
from benchmarks.agent_cost_runs import NUM_SERIES, QUICK, arrived_ratio, cpu_seconds, measure, peak_bytes
from benchmarks.figures import judge
from benchmarks.harness import Results
from benchmarks.progress import Progress, Run

from leptonai.operations.agent.source import Reading, SeriesTable


def run(**numbers: float) -> Run:
    progress = Progress(numbers=numbers)
    return Run(contestant=AGENT, started_at_seconds=0.0, ended_at_seconds=9.0, progress=progress)


def test_figures_are_the_promised_ones_and_memory_is_the_worst_runs() -> None:
    runs = [run(core_share=share, peak_mb=mb, arrived_ratio=part)
            for share, mb, part in ((0.02, 30.0, 1.0), (0.005, 61.0, 0.995), (0.006, 29.0, 1.0))]  # fmt: skip
    judged = {figure.name: judge(figure, Results(runs={WORK: {AGENT: runs}})) for figure in FIGURES}
    assert (judged["core_share"]["value"], judged["core_share"]["goal"]) == (0.006, 0.01)
    assert (judged["peak_memory_mb"]["value"], judged["peak_memory_mb"]["goal"]) == (61.0, 60)
    assert judged["core_share"]["met"]
    assert not judged["peak_memory_mb"]["met"]
    assert judged["arrived_ratio"]["value"] == 0.995


def test_processor_time_of_a_process_is_its_own() -> None:
    before, own = cpu_seconds(os.getpid()), time.process_time()
    while time.process_time() - own < 0.05:
        pass
    assert cpu_seconds(os.getpid()) - before == pytest.approx(time.process_time() - own, abs=0.02)
    assert peak_bytes(os.getpid()) > 10e6


def test_missing_samples_are_seen() -> None:
    whole = {"a": list(range(1000, 11_000, 1000)), "b": list(range(1000, 11_000, 1000))}
    assert arrived_ratio(whole, 0.5, 10.5, 2) == 1.0
    assert arrived_ratio({"a": whole["a"]}, 0.5, 10.5, 2) == 0.5
    assert arrived_ratio({**whole, "b": whole["b"][:5]}, 0.5, 10.5, 2) == 0.75


def test_the_gauges_change_at_each_reading() -> None:
    gauges = RunGauges(SeriesTable(), 50)
    first: list[Reading] = []
    second: list[Reading] = []
    gauges.read(first)
    gauges.read(second)
    assert len({key for key, _ in first}) == 50
    assert all(one != other for one, other in zip(first, second, strict=True))


def test_a_short_run_measures_a_real_agent_and_collector(tmp_path: Path) -> None:
    report = measure(tmp_path, QUICK)
    assert report["series_each_second"] == NUM_SERIES
    assert report["arrived_ratio"] > 0.5
    assert 0.0 < report["core_share"] < 0.5
    assert 15.0 < report["peak_mb"] < 60.0
    assert 1.0 < report["bytes_per_sample"] < 30.0
