"""NAB's rules as we read them, its alarm layer, and the checks of the benchmark itself."""

from __future__ import annotations

import numpy as np
import pytest
from benchmarks.nab import FIGURES, benchmark
from benchmarks.nab_alarms import SILENCE_POINTS, alarms, weighed
from benchmarks.nab_published import relative_entropy
from benchmarks.nab_scoring import Labelled, Profile, best_threshold, total

from benchmarks import nab_runs

STANDARD = Profile(hit=1.0, miss=1.0, false_alarm=0.11)
FILES = [
    Labelled(
        name=f"kind{i}/file.csv",
        values=np.random.default_rng(i).normal(size=1000),
        seconds=np.arange(0.0, 300_000.0, 300.0),
        windows=((400, 449), (700, 799)),
    )
    for i in range(2)
]


def points(*indices: int) -> np.ndarray:
    return np.array(indices, np.int64)


def test_silence_is_zero_and_perfection_a_hundred() -> None:
    assert total(FILES, [points(), points()], STANDARD).score == 0.0
    perfect = total(FILES, [points(400, 700)] * 2, STANDARD)
    assert perfect.score == pytest.approx(100.0)
    assert (perfect.num_hit, perfect.num_windows, perfect.num_false) == (4, 4, 0)


def test_a_window_counts_once_and_its_earliest_alarm() -> None:
    late = total(FILES[:1], [points(440)], STANDARD).score
    both = total(FILES[:1], [points(410, 440)], STANDARD).score
    assert both == total(FILES[:1], [points(410)], STANDARD).score > late


def test_false_alarms_cost_by_how_far_behind_a_window_they_are() -> None:
    assert FILES[0].worth[200] == -1.0
    assert -0.2 < FILES[0].worth[450] < 0.0
    assert FILES[0].worth[449 + 49] == pytest.approx(2.0 / (1.0 + np.exp(5.0)) - 1.0)
    assert FILES[0].worth[699] == -1.0
    one = total(FILES[:1], [points(200)], STANDARD).score
    assert one == pytest.approx(100.0 * -0.11 / 4.0)


def test_the_first_part_of_a_file_does_not_count() -> None:
    assert FILES[0].num_unscored == 150
    assert total(FILES[:1], [points(*range(150))], STANDARD).score == 0.0


def test_the_best_threshold_is_found() -> None:
    scores = [np.where(file.window_of >= 0, 0.8, 0.3) for file in FILES]
    threshold, found = best_threshold(FILES, scores, STANDARD, [0.1, 0.5, 0.9])
    assert (threshold, found.num_hit, found.num_false) == (0.5, 4, 0)


def test_relative_entropy_alarms_at_a_new_histogram() -> None:
    values = np.r_[np.tile([0.0, 1.0, 2.0, 3.0, 4.0], 60), np.zeros(60)]
    found = relative_entropy(values)
    assert found[51] == 0.0
    assert found[60:300].sum() == 0.0
    assert found[300:].max() == 1.0
    assert relative_entropy(np.ones(100)).sum() == 0.0


def test_alarms_are_silent_for_a_while_unless_louder() -> None:
    strengths = np.zeros(500)
    strengths[[10, 50, 60, 10 + SILENCE_POINTS, 111]] = [2.0, 4.9, 5.1, 3.0, 2.0]
    assert alarms(strengths, 1.5).tolist() == [10, 60]
    assert alarms(strengths[:59], 1.5).tolist() == [10]


def test_confirmation_and_fatigue_look_back_only() -> None:
    strengths = np.random.default_rng(0).exponential(size=400)
    whole = weighed(strengths)
    np.testing.assert_array_equal(weighed(strengths[:200]), whole[:200])
    lone, pair = np.zeros(20), np.zeros(20)
    lone[10] = pair[10] = pair[9] = 3.0
    assert weighed(lone)[10] < weighed(pair)[10]
    tired = np.tile([3.0, 3.0, 0.0, 0.0], 50)
    assert weighed(tired)[-3] < weighed(tired)[1]


def test_a_detector_that_looks_ahead_is_caught() -> None:
    found, _ = nab_runs.strengths(FILES[0])
    nab_runs.assert_causal(FILES[0], found)
    found[100] += 1e-9
    with pytest.raises(AssertionError, match="later points"):
        nab_runs.assert_causal(FILES[0], found)


def test_figures_come_from_alarms() -> None:
    strengths = [np.where(file.window_of >= 0, 3.0, 0.2) for file in FILES]
    numbers = nab_runs.judged(FILES, strengths, {nab_runs.STANDARD: STANDARD})
    assert numbers[nab_runs.STANDARD] == pytest.approx(100.0, abs=1.0)
    assert numbers["standard without category"] == pytest.approx(numbers[nab_runs.STANDARD])
    assert numbers["held out score"] == numbers[nab_runs.STANDARD]


def test_every_figure_has_a_goal_and_a_contest() -> None:
    contests = {contest for figure in FIGURES for contest in [figure.contest]}
    assert contests == {"NAB 1.1", "our scorer"}
    assert all(figure.goal is not None for figure in benchmark().figures)
