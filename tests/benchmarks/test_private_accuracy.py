"""What the private runs' figures are read from, and that nothing is claimed which they do not say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmarks.figures import judge
from benchmarks.harness import Results
from benchmarks.private_accuracy import BENCHMARK, TASKS
from benchmarks.progress import Progress, Run, Unmeasured

from benchmarks import private_accuracy
from leptonai.launch.jobs import load_job

STEP = {"kind": "step_done", "at_seconds": 5.0, "step": 200, "seconds": 4.0, "examples": 100, "loss": None}
SPENT = {
    "kind": "privacy_spent",
    "at_seconds": 6.0,
    "step": 200,
    "epsilon": 2.9,
    "delta": 1e-5,
    "limit": 2.93,
}
SEEN = {"kind": "evaluated", "at_seconds": 7.0, "step": 200, "metrics": {"accuracy": 0.984, "loss": 0.1}}


def read(folder: Path, *events: dict[str, Any]) -> Progress:
    (folder / "run").mkdir()
    (folder / "run" / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return private_accuracy._read(folder)


def run(accuracy: float, epsilon: float, *, tmp_path: Path, delta: float = 1e-5) -> Run:
    seen, spent = {**SEEN, "metrics": {"accuracy": accuracy}}, {**SPENT, "epsilon": epsilon, "delta": delta}
    tmp_path.mkdir()
    progress = read(tmp_path, STEP, spent, seen)
    return Run(contestant="lepton", started_at_seconds=0.0, ended_at_seconds=9.0, progress=progress)


def test_figures_are_the_mean_accuracy_and_the_largest_epsilon(tmp_path: Path) -> None:
    runs = [run(0.98, 2.9, tmp_path=tmp_path / "a"), run(0.984, 2.94, tmp_path=tmp_path / "b")]
    found = {
        figure.name: judge(figure, Results(runs={"MNIST": {"lepton": runs}})) for figure in BENCHMARK.figures
    }
    assert found["mnist_accuracy"]["value"] == 98.2
    assert found["mnist_accuracy"]["met"]
    assert found["mnist_epsilon"]["value"] == 2.94
    assert not found["mnist_epsilon"]["met"]
    assert found["cifar10_accuracy"]["value"] is None


def test_an_epsilon_at_another_delta_is_no_figure(tmp_path: Path) -> None:
    with pytest.raises(Unmeasured, match="delta"):
        private_accuracy.epsilon_spent(run(0.98, 2.9, tmp_path=tmp_path / "a", delta=1e-3))


@pytest.mark.parametrize("events", [(STEP, SEEN), (STEP, SPENT)], ids=["no cost", "no accuracy"])
def test_a_run_that_does_not_say_all_is_not_measured(
    tmp_path: Path, events: tuple[dict[str, Any], ...]
) -> None:
    with pytest.raises(Unmeasured):
        read(tmp_path, *events)


def test_the_jobs_promise_what_the_figures_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LEPTON_DATA", "/nowhere")
    monkeypatch.setenv("LEPTON_HOME", "/nowhere")
    for task in TASKS:
        job = load_job(task.job)
        assert job.privacy is not None
        assert job.privacy.epsilon == task.epsilon
        assert job.privacy.delta == 1e-5
        weights = list(job.model().parameters())
        assert all(float(each.detach().abs().max()) == 0 for each in weights)
