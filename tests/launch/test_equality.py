"""The number of workers alters no result, and an interrupted run ends like one that was not."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from leptonai.core.errors import Fault, Refused
from leptonai.core.events import CheckpointDamaged, Event, Resumed, StepDone, WorkerStarted
from leptonai.launch.request import RunResult
from leptonai.training.checkpoint import CheckpointStore
from leptonai.training.stopwatch import STEP_PHASES
from tests.launch.conftest import Runner

# float32 sums in another order: a few units in the last place, over some 30 steps of momentum.
TOLERANCE = 2e-5


def weights(result: RunResult) -> dict[str, NDArray[np.float32]]:
    """The float32 tensors of a run's last checkpoint, optimiser's included."""
    assert result.checkpoint_path is not None
    state = CheckpointStore(result.checkpoint_path.parent, keep=2).load(result.checkpoint_path).state
    return {
        name: np.frombuffer(raw.data, np.float32).reshape(raw.shape)
        for name, raw in state.tensors.items()
        if raw.dtype == "F32"
    }


def assert_close(left: RunResult, right: RunResult) -> None:
    ours, theirs = weights(left), weights(right)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        np.testing.assert_allclose(tensor, theirs[name], rtol=0, atol=TOLERANCE, err_msg=name)


def assert_equal(left: RunResult, right: RunResult) -> None:
    ours, theirs = weights(left), weights(right)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        np.testing.assert_array_equal(tensor, theirs[name], err_msg=name)


@pytest.mark.parametrize(
    "job",
    [
        # 203 examples in batches of 30: shares of 15, 8/7 and, in the last batch of an epoch, 23 over 4.
        "toy()",
        "toy(accumulate=3, clip_norm=0.5, optimizer=adamw)",
        # The last batch has 203 - 2 * 101 = 1 example: most workers have none.
        "toy(global_batch_size=101)",
    ],
)
def test_one_two_and_four_workers_learn_the_same(run: Runner, job: str) -> None:
    one = run(job, run="one", workers=1)
    two = run(job, run="two", workers=2)
    four = run(job, run="four", workers=4)
    assert one.step == two.step == four.step
    assert_close(one, two)
    assert_close(one, four)
    assert one.metrics["loss"] == pytest.approx(four.metrics["loss"], abs=1e-5)


def test_augmentation_does_not_depend_on_the_number_of_workers(run: Runner) -> None:
    job = (
        "toy(data=Data(train=Arrays(inputs, labels), "
        "augment=(lambda batch, draws: (batch[0] * draws.uniform()[:, None].astype(np.float32), batch[1]),)))"
    )
    assert_close(run(job, run="one", workers=1), run(job, run="three", workers=3))


def test_the_same_run_twice_is_equal_bit_for_bit(run: Runner) -> None:
    assert_equal(run(run="first"), run(run="second"))


def test_resume_equals_the_uninterrupted_run_bit_for_bit(run: Runner) -> None:
    calm = run(run="calm")
    with pytest.raises(Fault):
        run("toy('raise', at=11)", run="broken")
    resumed = run("toy()", run="broken", resume=True)
    assert run.of(Resumed)[0].step == 9
    assert_equal(calm, resumed)


def test_resume_with_dropout_and_augmentation_is_bit_exact(run: Runner) -> None:
    job = (
        "toy({mood}, at=8, model=lambda: nn.Sequential(Net({mood}, 8, 1), nn.Dropout(0.3)), data=Data("
        "train=Arrays(inputs, labels), augment=(lambda batch, draws: "
        "(batch[0] * draws.uniform()[:, None].astype(np.float32), batch[1]),)))"
    )
    calm = run(job.format(mood="''"), run="calm")
    with pytest.raises(Fault):
        run(job.format(mood="'raise'"), run="broken")
    assert_equal(calm, run(job.format(mood="''"), run="broken", resume=True))


@pytest.mark.parametrize("workers", [1, 3])
def test_resume_on_another_number_of_workers_loses_and_repeats_nothing(run: Runner, workers: int) -> None:
    calm = run(run="calm", workers=2)
    with pytest.raises(Fault):
        run("toy('raise', at=11)", run="broken", workers=2)
    resumed = run("toy()", run="broken", workers=workers, resume=True)
    assert resumed.step == calm.step
    assert resumed.examples == 4 * 203 - 203 - 2 * 30  # what was left after step 9 of 7 a epoch
    assert_close(calm, resumed)


def test_killed_at_twenty_random_instants_then_resumed_ends_like_the_calm_run(run: Runner) -> None:
    """Every worker is killed at once, wherever it is: computing, exchanging or saving."""
    job = "toy(pause=0.004, epochs=None, steps=150, checkpoints=Checkpoints(every_steps=1, every_seconds=0, keep=2))"
    calm = run(job, run="calm")
    instants = random.Random(7)
    kills, result = 0, None
    while result is None:
        try:
            result = run(job, run="killed", resume=kills > 0, listener=killer(instants, kills < 20))
        except Fault:
            kills += 1
    assert kills == 20
    assert_equal(calm, result)


def killer(instants: random.Random, active: bool) -> Callable[[Event], None]:
    """Kills both workers after a few reported steps, at an instant not tied to them."""
    pids: list[int] = []
    left = instants.randint(1, 3)

    def hear(event: Event) -> None:
        nonlocal left
        if isinstance(event, WorkerStarted):
            pids.append(event.pid)
        if isinstance(event, StepDone) and active:
            left -= 1
            if left == 0:
                threading.Timer(instants.random() * 0.03, kill).start()

    def kill() -> None:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)

    return hear


def test_a_damaged_checkpoint_is_passed_over_and_said(run: Runner) -> None:
    calm = run(run="calm")
    with pytest.raises(Fault):
        run("toy('raise', at=11)", run="broken")
    newest = run.home / "broken" / "checkpoints" / "step-00000009" / "state.safetensors"
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    resumed = run("toy()", run="broken", resume=True)
    assert run.of(CheckpointDamaged)[0].path.endswith("step-00000009")
    assert run.of(Resumed)[0].step == 6
    assert_equal(calm, resumed)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ("seed=6", "seed"),
        ("optimizer=adamw", "optimizer"),
        ("global_batch_size=31", "global_batch_size"),
        ("epochs=5", "total_steps"),
    ],
)
def test_another_jobs_directory_is_refused(run: Runner, change: str, word: str) -> None:
    run(run="run", overrides=("epochs=4",))
    with pytest.raises(Refused, match=word):
        run(f"toy({change})", run="run", resume=True)


def test_a_finished_run_resumes_to_its_own_end(run: Runner) -> None:
    first = run()
    again = run(resume=True)
    assert again.step == first.step
    assert again.checkpoint_digest == first.checkpoint_digest
    assert again.metrics == first.metrics
    assert isinstance(again.checkpoint_path, Path)


@pytest.mark.parametrize("job", ["toy()", "served()", "served('ssp(2)')", "private()"])
def test_workers_tell_where_their_time_goes(run: Runner, job: str) -> None:
    run(job)
    steps = run.of(StepDone)[1:]  # the first includes warming up
    for event in steps:
        assert {"input", "compute", "exchange"} <= set(event.phases) <= set(STEP_PHASES)
        assert (
            0 < sum(event.phases.values()) <= event.seconds * 1.5
        )  # served workers tell of deals that overlap
        assert len(event.rank_compute_seconds) == len(event.rank_exchange_seconds) == 2
        assert max(event.rank_compute_seconds) > 0
        assert max(event.rank_compute_seconds) < event.seconds * 1.5
        assert (event.gradient_norm is None) == (job != "toy()")
        assert event.gradient_norm is None or 0 < event.gradient_norm < 100
