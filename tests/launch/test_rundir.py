from __future__ import annotations

from pathlib import Path

import pytest

from leptonai.core.errors import InputError
from leptonai.core.events import Evaluated, Event, Notice, Resumed, RunEnded, RunStarted, StepDone
from leptonai.core.journal import Journal
from leptonai.launch.rundir import RunDirectory, open_run, summarise
from tests.cli.stage import made_plan, write_run


@pytest.fixture
def run(tmp_path: Path) -> RunDirectory:
    write_run(tmp_path / "run", learning_rate=0.1)
    return open_run(tmp_path / "run")


def step_done(step: int) -> StepDone:
    return StepDone(at_seconds=step, step=step, epoch=0, loss=1.0, examples=8, seconds=0.5, learning_rate=0.1)


def started(first_step: int) -> RunStarted:
    return RunStarted(
        at_seconds=1.0, run_id="r", num_workers=2, total_steps=9, first_step=first_step, steps_per_epoch=3
    )


def test_a_run_directory_gives_back_what_was_written(run: RunDirectory) -> None:
    assert run.plan() == made_plan()
    assert run.job()["task"] == "digits"
    assert run.curves().last_step == 200
    summary = run.summary()
    assert (summary.status, summary.step, summary.examples, summary.num_workers) == ("done", 200, 12800, 2)


def test_a_directory_that_is_missing_or_holds_no_run_is_an_input_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such run directory"):
        open_run(tmp_path / "missing")
    with pytest.raises(InputError, match=r"not a run directory, it has no events\.jsonl"):
        open_run(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "damaged, it is not JSON"),
        ("[1]", "damaged, expected a JSON object, found list"),
        ("\xff", "damaged, it is not JSON"),
    ],
)
def test_a_damaged_file_is_named(run: RunDirectory, text: str, message: str) -> None:
    run.job_path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=message) as caught:
        run.job()
    assert str(run.job_path) in caught.value.message


def test_a_plan_that_is_none_and_a_result_that_is_missing_are_named(run: RunDirectory) -> None:
    run.plan_path.write_text('{"strategy": "guess"}')
    with pytest.raises(InputError) as caught:
        run.plan()
    assert str(run.plan_path) in caught.value.message
    with pytest.raises(InputError, match=r"result\.json: no such file"):
        run.result()


def test_a_damaged_journal_is_named_with_its_line(run: RunDirectory) -> None:
    lines = run.events_path.read_text().splitlines()
    run.events_path.write_text("\n".join([lines[0], "nonsense", *lines[2:]]) + "\n")
    with pytest.raises(InputError, match=r"events\.jsonl:2"):
        run.summary()


def test_a_run_without_an_end_is_running_while_its_journal_is_open_and_lost_after(tmp_path: Path) -> None:
    write_run(tmp_path / "run", learning_rate=0.1, ended=False)
    run = open_run(tmp_path / "run")
    with Journal(run.events_path):
        assert run.summary().status == "running"
    assert run.summary().status == "lost"


def test_a_summary_counts_steps_taken_again_once() -> None:
    events: list[Event] = [started(0), step_done(1), step_done(2), step_done(3), RunEnded(
        at_seconds=4.0, status="failed", step=3, seconds=2.0, reason="worker 1 died",
    )]  # fmt: skip
    assert summarise(events).reason == "worker 1 died"
    again = [*events, started(2), Resumed(at_seconds=5.0, step=2, path="p"), step_done(3), step_done(4)]
    found = summarise(again)
    assert (found.step, found.examples, found.seconds, found.status) == (4, 32, 2.0, "unfinished")
    assert found.ended_seconds is None


def test_a_summary_has_the_last_metrics_and_the_first_time() -> None:
    def evaluated(step: int, value: float) -> Evaluated:
        return Evaluated(at_seconds=8.0, step=step, epoch=0, metrics={"mae": value}, examples=1, seconds=1.0)

    found = summarise([Notice(at_seconds=7.0, message=""), started(0), evaluated(1, 0.5), evaluated(2, 0.25)])
    assert (found.metrics, found.started_seconds) == ({"mae": 0.25}, 7.0)


def test_an_empty_journal_is_an_unfinished_run() -> None:
    assert summarise([]).status == "unfinished"
