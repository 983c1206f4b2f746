from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from leptonai.core.events import Evaluated, Event, Notice, Resumed, StepDone
from leptonai.launch.record import CurveRecorder, Recorders, TensorBoardRecorder, run_recorders


def step_done(step: int, loss: float = 1.0) -> StepDone:
    return StepDone(
        at_seconds=step, step=step, epoch=0, loss=loss, examples=80, seconds=0.5, learning_rate=0.1
    )


def scalars(directory: Path, tag: str) -> list[tuple[int, float]]:
    """As TensorBoard itself reads them."""
    accumulator = EventAccumulator(str(directory))
    accumulator.Reload()
    return [(event.step, pytest.approx(event.value)) for event in accumulator.Scalars(tag)]


def test_tensorboard_reads_back_every_scalar(tmp_path: Path) -> None:
    recorder = TensorBoardRecorder(tmp_path / "tb")
    recorder(step_done(10, 2.5))
    recorder(Evaluated(at_seconds=2, step=10, epoch=1, metrics={"accuracy": 0.75}, examples=1, seconds=1))
    recorder(step_done(20, 1.5))
    recorder.close()
    assert scalars(tmp_path / "tb", "train/loss") == [(10, 2.5), (20, 1.5)]
    assert scalars(tmp_path / "tb", "train/learning_rate") == [(10, 0.1), (20, 0.1)]
    assert scalars(tmp_path / "tb", "train/examples_per_second") == [(10, 160.0), (20, 160.0)]
    assert scalars(tmp_path / "tb", "evaluate/accuracy") == [(10, 0.75)]


def test_after_a_resume_tensorboard_shows_the_steps_taken_again_once(tmp_path: Path) -> None:
    first = TensorBoardRecorder(tmp_path)
    for step in (1, 2, 3):
        first(step_done(step, 1.0))
    first.close()
    second = TensorBoardRecorder(tmp_path)
    second(Resumed(at_seconds=9, step=2, path="checkpoints/step-2"))
    second(step_done(3, 5.0))
    second.close()
    assert scalars(tmp_path, "train/loss") == [(1, 1.0), (2, 1.0), (3, 5.0)]


def test_a_run_without_steps_writes_neither_events_nor_picture(tmp_path: Path) -> None:
    recorders = run_recorders(tmp_path, title="t")
    recorders(Notice(at_seconds=0, message="hello"))
    recorders.close()
    assert list(tmp_path.iterdir()) == []
    assert recorders.failures == []


def test_the_picture_is_drawn_once_at_the_end_and_shows_the_time_before_a_resume(tmp_path: Path) -> None:
    recorder = CurveRecorder(tmp_path / "curve.png", title="t", earlier=[step_done(1), step_done(2)])
    assert not (tmp_path / "curve.png").exists()
    recorder.close()
    assert (tmp_path / "curve.png").exists()
    (tmp_path / "curve.png").unlink()
    recorder.close()
    assert not (tmp_path / "curve.png").exists()


class _FullDisk:
    def __call__(self, event: Event) -> None:
        raise OSError("No space left on device")

    def close(self) -> None:
        raise AssertionError("closed after it was set aside")


def test_a_recorder_that_fails_is_set_aside_and_the_others_go_on(tmp_path: Path) -> None:
    good = CurveRecorder(tmp_path / "curve.png", title="t")
    recorders = Recorders([_FullDisk(), good])
    recorders(step_done(1))
    recorders(step_done(2))
    recorders.close()
    assert recorders.failures == ["_FullDisk gave up: No space left on device"]
    assert (tmp_path / "curve.png").exists()


def test_a_picture_that_cannot_be_written_is_told_not_raised(tmp_path: Path) -> None:
    recorders = Recorders([CurveRecorder(tmp_path / "missing" / "curve.png", title="t")])
    recorders(step_done(1))
    recorders.close()
    assert len(recorders.failures) == 1
