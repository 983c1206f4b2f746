"""The planner's accuracy: published tables, what the benchmark computes, and what it says without data."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from benchmarks.planner_accuracy_published import GOLDEN, pairs
from benchmarks.planner_accuracy_runs import percent, problem, rank_correlations, regrets

from benchmarks import planner_accuracy
from leptonai.compute.prediction import vtrain
from leptonai.compute.prediction.calibration import calibration_for
from leptonai.compute.prediction.fitting import predicted_seconds
from leptonai.compute.prediction.layouts import Layout
from leptonai.compute.prediction.vtrain import Row
from leptonai.compute.transformer import Transformer
from leptonai.core.errors import InputError

PUBLISHED = json.loads(GOLDEN.read_text())
MODEL = Transformer(num_layers=12, hidden=1024, num_heads=16, sequence=1024, vocabulary=51200)
PROMISED = {
    "single_node": 7.0, "multi_node": 9.0, "multi_node_median": 5.5, "single_node_zero_shot": 15.0,
    "multi_node_zero_shot": 11.0, "megatron_a100": 5.0, "korthikanti": 3.5, "rank_correlation_mean": 0.9,
    "regret_mean": 4.5, "regret_max": 27.0, "residual_regret_mean": 2.0, "residual_regret_max": 16.0,
    "calibration_share": 5.0, "local_worst": 15.0,
}  # fmt: skip


def folder() -> Path:
    try:
        return vtrain.find_vtrain(
            [Path(each) for each in os.environ.get("LEPTON_DATA", "").split(":") if each]
        )
    except InputError as error:
        pytest.skip(error.message)


@pytest.mark.parametrize("name", ["megatron_a100", "korthikanti", "megatron_h100"])
def test_published_step_times_are_met(name: str) -> None:
    """From data sheets in the node, so that no measured table is needed."""
    table = PUBLISHED[name]
    family = "h100" if name == "megatron_h100" else "a100"
    errors = [abs(mine / theirs - 1) for mine, theirs in pairs(name, table, calibration_for(family), ())]
    assert np.mean(errors) <= table["tolerance"]
    assert max(errors) <= table["worst"]


def test_measured_steps_are_met_with_the_shipped_constants() -> None:
    found = folder()
    tables = vtrain.read_all_reduces(found)
    for name, goal in ((vtrain.SINGLE_FILE, 7.0), (vtrain.MULTI_FILE, 9.0)):
        rows = vtrain.read_rows(found / name)
        seconds = predicted_seconds(
            rows, lambda num_gpus: vtrain.machine_of(num_gpus, tables), calibration_for("A100-80GB")
        )
        assert np.mean(percent(rows, seconds)) <= goal


def rows_of(*seconds: float) -> list[Row]:
    return [Row(MODEL, 8, 64, Layout(micro_batch=2**place), each) for place, each in enumerate(seconds)]


def test_errors_leave_out_what_calibrated() -> None:
    assert percent(rows_of(1.0, 2.0, 4.0), np.array([1.1, 9.0, 3.0]), without=[1]) == pytest.approx(
        [10.0, 25.0]
    )


def test_regret_is_of_the_layout_that_would_be_chosen() -> None:
    rows = rows_of(1.0, 1.5, 3.0)
    assert regrets(rows, np.array([1.0, 2.0, 3.0])) == [0.0]
    assert regrets(rows, np.array([2.0, 1.0, 3.0])) == [50.0]


def test_rank_correlation_is_spearmans() -> None:
    rows = rows_of(1.0, 2.0, 3.0, 4.0)
    assert rank_correlations(rows, np.array([0.1, 0.2, 5.0, 9.0]), problem) == pytest.approx([1.0])
    assert rank_correlations(rows, np.array([9.0, 5.0, 0.2, 0.1]), problem) == pytest.approx([-1.0])
    assert rank_correlations(rows, np.array([1.0, 3.0, 2.0, 4.0]), problem) == pytest.approx([0.8])
    assert rank_correlations(rows[:2], np.array([1.0, 2.0]), problem) == []


def test_the_figures_are_those_promised() -> None:
    figures = {each.name: each for each in planner_accuracy.benchmark().figures}
    assert {name: each.goal for name, each in figures.items() if each.goal is not None} == PROMISED
    assert figures["rank_correlation_mean"].better == "higher"


def test_without_data_the_benchmark_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("LEPTON_DATA", raising=False)
    assert planner_accuracy.main(["--json"]) == 2
    said = capsys.readouterr()
    assert "hint: set LEPTON_DATA" in said.err
    assert said.out == ""
