from __future__ import annotations

import io

from rich.console import Console

from leptonai.cli.progress import Pace, TrainDisplay, duration
from leptonai.core.events import (
    CheckpointDamaged,
    CheckpointFailed,
    Evaluated,
    Event,
    Notice,
    Resumed,
    RunStarted,
    StepDone,
)

START = RunStarted(
    at_seconds=0, run_id="r", num_workers=2, total_steps=400, first_step=0, steps_per_epoch=100
)


def step_done(step: int, *, at: float, seconds: float = 1.0) -> StepDone:
    return StepDone(
        at_seconds=at, step=step, epoch=0, loss=0.5, examples=6400, seconds=seconds, learning_rate=0.1
    )


def shown(events: list[Event], *, terminal: bool = False, quiet: bool = False, width: int = 80) -> str:
    """What a display writes for these events."""
    stream = io.StringIO()
    console = Console(
        file=stream, force_terminal=terminal, width=width, color_system=None, legacy_windows=False
    )
    display = TrainDisplay(console, quiet=quiet)
    for event in events:
        display(event)
    display.close()
    return stream.getvalue()


def test_off_a_terminal_a_line_comes_at_first_then_every_ten_seconds_and_at_the_end() -> None:
    steps = [step_done(10 * n, at=float(n)) for n in range(1, 41)]
    lines = shown([START, *steps]).splitlines()
    assert [line.split("step ")[1].split("/")[0] for line in lines] == ["10", "110", "210", "310", "400"]
    assert lines[1] == "epoch 1.1/4  step 110/400  loss 0.5  6,400 ex/s  29 s left"


def test_on_a_terminal_a_bar_fits_the_width_and_is_gone_at_the_end() -> None:
    text = shown([START, step_done(200, at=1.0)], terminal=True)
    assert "epoch 2.0/4  step 200/400  loss 0.5  6,400 ex/s" in text
    assert text.endswith("\x1b[2K")  # the row is wiped


def test_a_bar_is_drawn_ten_times_a_second_at_most() -> None:
    steps = [step_done(step, at=step / 1000, seconds=0.001) for step in range(1, 400)]
    drawn = shown([START, *steps], terminal=True).count("step ")
    assert 1 <= drawn <= 10


def test_the_longest_line_of_a_bar_fits_eighty_columns() -> None:
    pace = Pace(
        total_steps=46900, steps_per_epoch=4690, step=46899, loss=0.012345,
        examples_per_second=123456, seconds_per_step=600.0,
    )  # fmt: skip
    assert len(pace.describe()) + 8 + 1 <= 80


def test_evaluations_and_warnings_are_lines_of_their_own() -> None:
    events = [
        START,
        Evaluated(
            at_seconds=1, step=100, epoch=1, metrics={"accuracy": 0.91234, "loss": 0.3}, examples=9, seconds=1
        ),
        Notice(at_seconds=1, message="4 workers share 2 cores [0, 1]"),
        CheckpointFailed(at_seconds=1, step=100, reason="no space left"),
        CheckpointDamaged(at_seconds=1, path="checkpoints/step-50", reason="wrong digest"),
    ]
    assert shown(events).splitlines() == [
        "step 100  evaluation: accuracy 0.9123  loss 0.3",
        "note: 4 workers share 2 cores [0, 1]",
        "warning: the checkpoint at step 100 could not be written: no space left",
        "warning: checkpoints/step-50 is damaged and passed over: wrong digest",
    ]


def test_quiet_shows_warnings_and_nothing_else() -> None:
    events = [START, step_done(10, at=1.0), Notice(at_seconds=1, message="look")]
    assert shown(events, quiet=True) == "note: look\n"


def test_time_left_follows_the_pace_of_recent_steps() -> None:
    pace = Pace()
    pace.add(START)
    pace.add(step_done(100, at=1.0, seconds=100.0))
    assert pace.seconds_left == 300.0
    for step in range(110, 310, 10):
        pace.add(step_done(step, at=2.0, seconds=5.0))
    assert 49.0 < pace.seconds_left < 52.0


def test_a_resumed_run_goes_on_from_its_step() -> None:
    pace = Pace()
    pace.add(START)
    pace.add(Resumed(at_seconds=0, step=300, path="checkpoints/step-300"))
    pace.add(step_done(310, at=1.0, seconds=10.0))
    assert pace.seconds_left == 90.0


def test_durations_roll_over() -> None:
    assert [duration(seconds) for seconds in (0.0, 59.4, 59.6, 3599.6)] == ["0 s", "59 s", "1:00", "1:00:00"]
