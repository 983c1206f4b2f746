from __future__ import annotations

import json
from pathlib import Path

import pytest
from benchmarks.peers.report import Reporter
from benchmarks.progress import (
    Accuracy,
    Mark,
    Progress,
    Run,
    Unmeasured,
    final_accuracy,
    from_events,
    from_report,
    median,
    peak_bytes,
    samples_per_second,
    seconds_to_accuracy,
    startup_seconds,
)
from hypothesis import given
from hypothesis import strategies as st

from leptonai.core.events import Evaluated, StepDone, event_to_json


def run_with(progress: Progress, *, started: float = 100.0) -> Run:
    return Run(contestant="x", started_at_seconds=started, ended_at_seconds=200.0, progress=progress)


def test_speed_leaves_the_warm_up_out() -> None:
    marks = (
        Mark(at_seconds=101.0, examples=10),
        Mark(at_seconds=102.5, examples=20),
        Mark(at_seconds=104.5, examples=220),
    )
    run = run_with(Progress(first_step_at_seconds=101.0, marks=marks))
    assert samples_per_second(run, warmup_seconds=1.0) == 100.0
    assert startup_seconds(run) == 1.0


def test_a_run_too_short_to_measure_says_so() -> None:
    run = run_with(Progress(first_step_at_seconds=101.0, marks=(Mark(at_seconds=103.0, examples=10),)))
    with pytest.raises(Unmeasured, match="too short"):
        samples_per_second(run, warmup_seconds=1.0)


def test_time_to_accuracy_is_that_of_the_first_measurement_reaching_it() -> None:
    accuracies = tuple(Accuracy(at_seconds=100.0 + k, value=v) for k, v in ((3, 0.9), (5, 0.99), (7, 0.995)))
    run = run_with(Progress(first_step_at_seconds=101.0, accuracies=accuracies))
    assert seconds_to_accuracy(run, 0.99) == 5.0
    assert final_accuracy(run) == 0.995
    with pytest.raises(Unmeasured, match=r"best 99\.50%"):
        seconds_to_accuracy(run, 0.999)


def test_memory_that_was_not_sampled_is_no_zero() -> None:
    with pytest.raises(Unmeasured):
        peak_bytes(run_with(Progress(first_step_at_seconds=101.0)))


def test_our_events_and_a_peers_report_of_the_same_run_read_alike(tmp_path: Path) -> None:
    events = [
        StepDone(at_seconds=11.0, step=1, epoch=0, loss=2.0, examples=256, seconds=1.0, learning_rate=0.1),
        StepDone(at_seconds=13.0, step=5, epoch=0, loss=1.0, examples=1024, seconds=2.0, learning_rate=0.1),
        Evaluated(at_seconds=14.0, step=5, epoch=0, metrics={"accuracy": 0.5}, examples=10, seconds=1.0),
    ]
    report = [
        {"first_step_at": 11.0},
        {"examples": 256, "at": 11.0},
        {"examples": 1280, "at": 13.0},
        {"epoch": 1, "seconds": 3.0, "accuracy": 0.5, "at": 14.0},
    ]
    ours = from_events(json.dumps(event_to_json(event)) for event in events)
    assert ours == from_report(json.dumps(line) for line in report)


def test_a_first_event_of_several_steps_places_the_first_of_them() -> None:
    event = StepDone(at_seconds=12.0, step=4, epoch=0, loss=2.0, examples=8, seconds=2.0, learning_rate=0.1)
    assert from_events([json.dumps(event_to_json(event))]).first_step_at_seconds == 10.5


def test_reports_without_a_step_are_refused() -> None:
    with pytest.raises(Unmeasured):
        from_report([])
    with pytest.raises(Unmeasured):
        from_events([json.dumps({"kind": "notice", "at_seconds": 1.0, "message": "hi"})])


@given(st.lists(st.integers(min_value=1, max_value=512), min_size=1, max_size=50))
def test_the_reporters_last_mark_counts_every_example(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int]
) -> None:
    path = tmp_path_factory.mktemp("report") / "report.jsonl"
    reporter = Reporter(path)
    for size in sizes:
        reporter.step(size)
    reporter.epoch(1, seconds=1.0, accuracy=0.25)
    reporter.close()
    progress = from_report(path.read_text().splitlines())
    assert progress.marks[-1].examples == sum(sizes)
    assert [mark.examples for mark in progress.marks] == sorted({mark.examples for mark in progress.marks})
    assert [accuracy.value for accuracy in progress.accuracies] == [0.25]


def test_the_reporter_of_another_rank_writes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "report.jsonl"
    reporter = Reporter(path, rank=1)
    reporter.step(4)
    reporter.close()
    assert not path.exists()


@given(st.lists(st.floats(min_value=-1e6, max_value=1e6), min_size=1))
def test_at_least_half_of_the_values_lie_on_either_side_of_the_median(values: list[float]) -> None:
    middle = median(values)
    assert 2 * sum(value <= middle for value in values) >= len(values)
    assert 2 * sum(value >= middle for value in values) >= len(values)


def test_a_median_of_nothing_is_unmeasured() -> None:
    with pytest.raises(Unmeasured):
        median([])
