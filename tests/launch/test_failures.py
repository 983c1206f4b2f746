"""Whatever a worker does, the gang ends at once and the worker's own words come first."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from leptonai.core.control import Save, send_order
from leptonai.core.errors import Fault, InputError
from leptonai.core.events import (
    CheckpointFailed,
    CheckpointSaved,
    Event,
    RunEnded,
    StepDone,
    WorkerFailed,
    WorkerStarted,
)
from leptonai.training.checkpoint import CheckpointStore
from tests.launch.conftest import Runner


class Stopwatch:
    """Notes which processes there were."""

    def __init__(self) -> None:
        self.pids: list[int] = []

    def __call__(self, event: Event) -> None:
        if isinstance(event, WorkerStarted):
            self.pids.append(event.pid)


@pytest.mark.parametrize(
    ("mood", "words", "own_words"),
    [
        ("raise", "ValueError: the toy broke", "the toy broke"),
        ("kill", "was killed by SIGKILL", "about to kill"),
        ("exit", "ended with exit status 3", "about to exit"),
    ],
)
def test_a_worker_that_dies_ends_the_gang_with_its_own_words(
    run: Runner, mood: str, words: str, own_words: str
) -> None:
    watch = Stopwatch()
    log = run.home / "run" / "logs" / "rank-1.log"
    with pytest.raises(Fault, match="worker 1") as caught:
        run(f"toy({mood!r}, elastic=None)", listener=watch)
    assert words in str(caught.value)
    assert own_words in (caught.value.detail or "")
    assert "about to" in log.read_text()
    assert run.of(RunEnded)[0].at_seconds - log.stat().st_mtime < 2.0
    assert not [pid for pid in watch.pids if psutil.pid_exists(pid)]
    failed = run.of(WorkerFailed)
    assert [event.rank for event in failed] == [1]
    assert run.of(RunEnded)[0].status == "failed"


def test_a_worker_that_is_stopped_ends_the_gang_within_two_seconds(run: Runner) -> None:
    with pytest.raises(Fault, match="worker 1 is stopped"):
        run("toy('stop', elastic=None)")
    stopped = (run.home / "run" / "logs" / "rank-1.log").stat().st_mtime
    assert run.of(RunEnded)[0].at_seconds - stopped < 2.0


def test_a_worker_that_hangs_is_named_and_shows_where_it_hangs(run: Runner) -> None:
    with pytest.raises(Fault, match="worker 1 made no progress") as caught:
        run("toy('spin', at=9, elastic=None)", hang_seconds=2.5)
    assert "misbehave" in (caught.value.detail or "")


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_last_good_checkpoint(run: Runner) -> None:
    with pytest.raises(Fault, match="step 8, worker 1: the loss is nan"):
        run("toy('nan', at=8)")
    kept = CheckpointStore(run.home / "run" / "checkpoints", keep=2).load_latest(lambda *_: None)
    assert kept is not None
    assert kept.step == 6


def test_labels_out_of_range_are_the_callers_to_fix(run: Runner) -> None:
    with pytest.raises(InputError, match=r"labels run from 0 to 7, the model has 3 outputs"):
        run("toy(data=Data(train=Arrays(inputs, np.where(labels > 1, 7, labels))))")
    assert not (run.home / "run").exists()


def test_empty_data_is_the_callers_to_fix(run: Runner) -> None:
    with pytest.raises(InputError, match="no example"):
        run("toy(data=lambda: Data(train=Arrays(inputs[:0], labels[:0])))")


def test_checkpoints_that_cannot_be_written_are_told_and_survived(run: Runner) -> None:
    (run.home / "run").mkdir()
    (run.home / "run" / "checkpoints").write_text("in the way")
    result = run()
    assert result.status == "done"
    assert result.step == 28
    assert len(run.of(CheckpointFailed)) >= 2
    assert not run.of(CheckpointSaved)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a checkpoint or two of the toy, no more."""
    place = tmp_path / "run" / "checkpoints"
    place.mkdir(parents=True)
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=28k", "lepton-test", str(place)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("needs the right to mount a small file system")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_disk_that_fills_up_is_told_and_the_last_good_checkpoint_stays(
    run: Runner, small_disk: Path
) -> None:
    result = run()
    assert result.status == "done"
    saved = [event.step for event in run.of(CheckpointSaved)]
    assert 1 <= len(saved) <= 3
    assert "No space left" in run.of(CheckpointFailed)[0].reason
    kept = CheckpointStore(small_disk, keep=2).load_latest(
        lambda *_: pytest.fail("taken for good, but damaged")
    )
    assert kept is not None
    assert kept.step == saved[-1]
    assert result.checkpoint_path is not None
    assert result.checkpoint_path.name == f"step-{saved[-1]:08d}"


def test_orders_reach_a_run_while_it_lives(run: Runner) -> None:
    ordered: list[str] = []

    def order(event: Event) -> None:
        if isinstance(event, StepDone) and not ordered:
            ordered.append(send_order(run.home / "run", Save()))

    run("toy(pause=0.02, checkpoints=Checkpoints(every_seconds=0))", listener=order)
    assert ordered == ["taken"]
    assert len(run.of(CheckpointSaved)) == 2  # as ordered, and at the end
    assert not (run.home / "run" / "control.sock").exists()


def test_a_second_run_in_the_same_directory_needs_resume(run: Runner) -> None:
    run(overrides=("steps=1",))
    with pytest.raises(InputError, match="already holds a run"):
        run(overrides=("steps=1",))


def test_a_directory_that_cannot_be_written_is_refused(run: Runner) -> None:
    with pytest.raises(InputError, match="cannot be used as run directory"):
        run(run="/proc/lepton")


def test_resume_needs_a_run(run: Runner) -> None:
    with pytest.raises(InputError, match="no run to resume"):
        run(resume=True)
    assert not Path(run.home / "run").exists()
