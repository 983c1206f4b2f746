"""How the consistency benchmark reads its runs, and that its jobs do what they claim."""

from __future__ import annotations

import importlib.util
import json
import time
from pathlib import Path
from types import ModuleType

import pytest
import torch
from benchmarks.figures import Options
from benchmarks.harness import Results
from benchmarks.progress import Accuracy, Loss, Progress, Run, Unmeasured, from_events

from benchmarks import consistency

WORKLOADS = Path(__file__).resolve().parents[2] / "benchmarks" / "workloads"


def paced(name: str, losses: list[float], *, every: float) -> Run:
    reached = tuple(
        Loss(at_seconds=100.0 + every * number, step=10 * number, value=value)
        for number, value in enumerate(losses, start=1)
    )
    progress = Progress(first_step_at_seconds=100.0, losses=reached)
    return Run(contestant=name, started_at_seconds=90.0, ended_at_seconds=999.0, progress=progress)


def straggler(**runs: Run) -> Results:
    names = {"bsp": "bsp", "asp": "asp", "ssp": "ssp(3)"}
    return Results(runs={consistency.STRAGGLER: {names[name]: [run] for name, run in runs.items()}})


def test_the_faster_mode_counts_from_the_first_step_to_bsp_s_last_loss() -> None:
    results = straggler(
        bsp=paced("bsp", [0.9, 0.5, 0.3], every=4.0),
        asp=paced("asp", [0.9, 0.8, 0.29, 0.31], every=1.0),
        ssp=paced("ssp(3)", [0.9, 0.2], every=3.0),
    )
    assert consistency.straggler_speedup(("ssp(3)", "asp"), results) == 12.0 / 3.0
    assert consistency.straggler_speedup(("ssp(3)",), results) == 12.0 / 6.0


def test_a_mode_that_never_gets_there_is_not_the_faster_one() -> None:
    results = straggler(
        bsp=paced("bsp", [0.9, 0.3], every=4.0),
        asp=paced("asp", [0.9, 0.8], every=1.0),
        ssp=paced("ssp(3)", [0.9, 0.2], every=3.0),
    )
    assert consistency.straggler_speedup(("ssp(3)", "asp"), results) == 8.0 / 6.0
    with pytest.raises(Unmeasured, match=r"asp: never measured a loss of 0\.3000"):
        consistency.straggler_speedup(("asp",), results)


def test_points_and_bytes_are_compared_with_bsp() -> None:
    def run(name: str, accuracy: float, sent: float) -> Run:
        progress = Progress(
            accuracies=(Accuracy(at_seconds=1.0, value=accuracy),),
            numbers={"bytes_sent": sent, "bytes_received": 100.0},
        )
        return Run(contestant=name, started_at_seconds=0.0, ended_at_seconds=2.0, progress=progress)

    results = Results(
        runs={
            consistency.ACCURACY: {"bsp": [run("bsp", 0.99, 0)], "asp": [run("asp", 0.985, 0)]},
            consistency.BYTES: {
                consistency.FLOAT32: [run("x", 0, 4000)],
                consistency.INT8: [run("y", 0, 10)],
            },
        }
    )
    assert consistency.points_above_bsp("asp", results) == pytest.approx(-0.5)
    assert consistency.bytes_ratio(consistency.INT8, ("bytes_sent",), results) == 400.0
    both = consistency.bytes_ratio(consistency.INT8, ("bytes_sent", "bytes_received"), results)
    assert both == pytest.approx(4100 / 110)


def test_losses_and_bytes_are_read_from_events() -> None:
    events = [
        {"kind": "step_done", "at_seconds": 5.0, "step": 2, "examples": 8, "seconds": 2.0},
        {"kind": "staleness", "at_seconds": 5.0, "bytes_sent": 7, "bytes_received": 9},
        {"kind": "evaluated", "at_seconds": 6.0, "step": 2, "metrics": {"loss": 0.25, "accuracy": 0.5}},
    ]
    progress = from_events(json.dumps(event) for event in events)
    assert progress.losses == (Loss(at_seconds=6.0, step=2, value=0.25),)
    assert progress.numbers == {"bytes_sent": 7.0, "bytes_received": 9.0}


def test_every_mode_is_one_that_the_parameter_server_has(monkeypatch: pytest.MonkeyPatch) -> None:
    for settings in (*consistency.MODES.values(), *consistency.EXCHANGES.values()):
        monkeypatch.setenv("BENCHMARK_SERVER", json.dumps(dict(settings)))
        server = workload("consistency_job").job.parameter_server
        assert (server.consistency, server.transport) == (
            settings["consistency"],
            settings.get("transport", "auto"),
        )


def test_only_one_worker_is_slow_and_a_step_is_padded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = workload("straggler_job")
    monkeypatch.setenv("BENCHMARK_PACE", str(tmp_path / "pace"))
    assert [module.take_pace(tmp_path / "other") for _ in range(3)] == [0.4, 0.1, 0.1]
    first, second = module.Paced(), module.Paced()
    for net, least in ((first, 0.4), (second, 0.1)):
        began = time.monotonic()
        net(torch.zeros(4, 1, 28, 28)).sum().backward()
        assert least <= time.monotonic() - began
    assert len(list((tmp_path / "pace").glob("*.began"))) == 1  # one process


def workload(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"workload_{name}", WORKLOADS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_commands_name_jobs_that_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(consistency, "prepare_arrays", lambda folder: None)
    options = Options(num_runs=1, only=(), quick=True, as_json=True)
    for contest in consistency.build_in(tmp_path).build(options):
        for each in contest.contestants:
            words = each.command(tmp_path, 3)
            assert Path(words[words.index("train") + 1]).is_file()
            assert Path(words[words.index("--cluster") + 1]).is_file()
            assert "seed=3" in words
