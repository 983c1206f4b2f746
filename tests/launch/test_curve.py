from __future__ import annotations

import math
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from leptonai.core.events import Evaluated, Event, Resumed, RunStarted, StepDone
from leptonai.launch.curve import (
    PICTURE_PIXELS,
    CurveBuilder,
    Curves,
    along,
    curves_of,
    draw_picture,
    in_epochs,
    smoothed,
    spans_decades,
)


def step_done(step: int, loss: float) -> StepDone:
    return StepDone(at_seconds=0, step=step, epoch=0, loss=loss, examples=8, seconds=1.0, learning_rate=0.1)


def evaluated(step: int, **metrics: float) -> Evaluated:
    return Evaluated(at_seconds=0, step=step, epoch=0, metrics=metrics, examples=8, seconds=1.0)


def started(first_step: int = 0) -> RunStarted:
    return RunStarted(
        at_seconds=0, run_id="r", num_workers=1, total_steps=100, first_step=first_step, steps_per_epoch=10
    )


def test_curves_follow_the_steps_and_the_evaluations() -> None:
    curves = curves_of(
        [started(), step_done(1, 2.0), evaluated(1, accuracy=0.5, loss=1.9), step_done(2, 1.0)]
    )
    assert curves.loss == ((1, 2.0), (2, 1.0))
    assert curves.evaluated == {"accuracy": ((1, 0.5),), "loss": ((1, 1.9),)}
    assert curves.steps_per_epoch == 10


def test_steps_taken_again_after_a_resume_replace_the_old_ones() -> None:
    first = [started(), *(step_done(step, 1.0) for step in range(1, 8)), evaluated(6, accuracy=0.1)]
    again = [started(4), Resumed(at_seconds=0, step=4, path="p"), step_done(5, 3.0), step_done(6, 4.0)]
    curves = curves_of([*first, *again])
    assert [step for step, _ in curves.loss] == [1, 2, 3, 4, 5, 6]
    assert curves.loss[-2:] == ((5, 3.0), (6, 4.0))
    assert curves.evaluated == {}


def test_a_run_begun_anew_without_a_checkpoint_forgets_everything() -> None:
    assert curves_of([started(), step_done(1, 1.0), started(0)]).loss == ()


def test_losses_that_are_not_finite_are_left_out() -> None:
    assert curves_of([step_done(1, math.nan), step_done(2, math.inf), step_done(3, 1.0)]).loss == ((3, 1.0),)


@given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), max_size=40))
def test_steps_of_a_curve_always_rise(moves: list[tuple[int, bool]]) -> None:
    builder, step = CurveBuilder(), 0
    for size, goes_on in moves:
        event: Event
        if goes_on:
            step += size
            event = step_done(step, 1.0)
        else:
            step = max(0, step - size)
            event = Resumed(at_seconds=0, step=step, path="p")
        builder.add(event)
    steps = [at for at, _ in builder.curves().loss]
    assert steps == sorted(set(steps))


def test_epochs_are_the_scale_once_one_is_complete() -> None:
    short, long = (Curves(steps_per_epoch=10, loss=((last, 1.0),)) for last in (9, 10))
    assert (in_epochs(short), along(9, short)) == (False, 9.0)
    assert (in_epochs(long), along(10, long)) == (True, 1.0)


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=50), st.integers(1, 9))
def test_smoothing_keeps_length_and_range(values: list[float], window: int) -> None:
    found = smoothed(values, window=window)
    assert len(found) == len(values)
    assert min(values) - 1e-9 <= min(found)
    assert max(found) <= max(values) + 1e-9


def test_a_log_scale_needs_positive_values_far_apart() -> None:
    assert spans_decades([10.0, 0.1])
    assert not spans_decades([10.0, 9.0])
    assert not spans_decades([10.0, 0.0])
    assert not spans_decades([])


def test_the_picture_has_its_size_and_both_panels_hold_ink(tmp_path: Path) -> None:
    loss = tuple((step, 2.0 / step) for step in range(1, 101))
    curves = Curves(steps_per_epoch=10, loss=loss, evaluated={"accuracy": ((50, 0.7), (100, 0.9))})
    draw_picture(curves, tmp_path / "curve.png", title="digits")
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.size == PICTURE_PIXELS
        width, height = picture.size
        for left in (0, width // 2):
            panel = picture.convert("RGB").crop((left, 0, left + width // 2, height))
            colours = panel.getcolors(maxcolors=2**20)
            assert colours is not None
            assert any(max(colour) - min(colour) > 100 for _, colour in colours if isinstance(colour, tuple))


def test_a_picture_can_be_drawn_of_nothing_and_of_a_loss_alone(tmp_path: Path) -> None:
    for number, curves in enumerate(
        (Curves(), Curves(loss=((1, 1.0),)), Curves(evaluated={"mae": ((1, 1.0),)}))
    ):
        draw_picture(curves, tmp_path / f"{number}.png", title="")
        assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")
