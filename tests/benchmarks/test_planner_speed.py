"""What the planner's speed figures are read from, and that a run costs what it says."""

from __future__ import annotations

import json

import numpy as np
import pytest
from benchmarks.figures import judge
from benchmarks.harness import Results
from benchmarks.planner_speed import COSTING, FIGURES, PREFACE, SEARCH, SHUFFLED, SPACE
from benchmarks.planner_speed_runs import check, costing, searching, shuffled, space_of
from benchmarks.progress import Progress, Run

from benchmarks import planner_speed, planner_speed_runs
from leptonai.compute.prediction.layouts import COLUMNS, Layouts
from leptonai.compute.prediction.transformer_step import TransformerPredictor
from leptonai.compute.search.space import chunks, count


def run(contestant: str, **numbers: float) -> Run:
    progress = Progress(numbers=numbers)
    return Run(contestant=contestant, started_at_seconds=0.0, ended_at_seconds=9.0, progress=progress)


def test_figures_are_medians_over_runs() -> None:
    results = Results(
        runs={
            SPACE: {
                COSTING: [run(COSTING, costed=900_000, seconds=s, layouts=900_000) for s in (3.0, 1.0, 2.0)],
                SHUFFLED: [run(SHUFFLED, costed=900_000, seconds=4.0, layouts=900_000)],
                SEARCH: [run(SEARCH, costed=9, seconds=s, layouts=900_000) for s in (11.0, 12.0, 9.0)],
            }
        }
    )
    judged = {figure.name: judge(figure, results) for figure in FIGURES}
    assert judged["costed_per_second"]["value"] == 450_000
    assert judged["costed_per_second"]["met"]
    assert judged["costed_per_second_shuffled"]["value"] == 225_000
    assert judged["whole_space_seconds"]["value"] == 11
    assert not judged["whole_space_seconds"]["met"]
    assert not judged["whole_space_layouts"]["met"]


def test_the_space_has_the_size_that_the_results_file_states() -> None:
    assert f"{count(space_of(quick=False)):,} layouts" in PREFACE[1]


def test_costing_prunes_nothing_and_searching_does() -> None:
    layouts = count(space_of(quick=True))
    for in_order in (True, False):
        assert costing(quick=True, in_order=in_order)["costed"] == layouts
    found = searching(quick=True)
    assert found["layouts"] == layouts
    assert 0 < float(found["costed"]) < layouts


def test_random_order_holds_the_same_layouts() -> None:
    space = space_of(quick=True)
    in_order = np.concatenate([_table(chunk) for chunk in chunks(space)])
    in_disorder = np.concatenate([_table(chunk) for chunk in shuffled(space)])
    assert (in_order != in_disorder).any()
    assert (np.unique(in_order, axis=0) == np.unique(in_disorder, axis=0)).all()


def _table(layouts: Layouts) -> np.ndarray:
    return np.stack([getattr(layouts, name) for name in COLUMNS], axis=1)


def test_a_row_that_is_not_costed_is_noticed() -> None:
    layouts = next(chunks(space_of(quick=True)))
    predictor = TransformerPredictor(planner_speed_runs.MODEL, planner_speed_runs.MACHINE, global_batch=2)
    predictions = predictor.predict(layouts)
    check(predictions)
    predictions.step_seconds[3] = np.nan
    with pytest.raises(AssertionError):
        check(predictions)


def test_the_command_ends_in_a_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert planner_speed.main(["--quick", "--json"]) == 0
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(line["figures"]) == {figure.name for figure in FIGURES}
    assert line["quick"]
