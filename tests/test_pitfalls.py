"""What docs/pitfalls.md says of this project, where no other test shows it already."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from leptonai.compute.engines.local import LocalEngine
from leptonai.core.errors import Fault
from leptonai.launch.request import RunResult
from leptonai.launch.run import start_engine
from leptonai.training.checkpoint import CheckpointStore
from leptonai.training.data.order import step_indices
from leptonai.training.learner import shares
from tests.launch.conftest import Runner

BATCH = 101
NORMALISED = "nn.Sequential(nn.BatchNorm1d(12), nn.Linear(12, 3))"


@pytest.fixture(scope="module")
def engine() -> Iterator[LocalEngine]:
    with start_engine() as started:
        yield started


@pytest.fixture
def run(engine: LocalEngine, tmp_path: Path) -> Runner:
    return Runner(engine, tmp_path)


def tensor(result: RunResult, name: str) -> np.ndarray:
    assert result.checkpoint_path is not None
    raw = (
        CheckpointStore(result.checkpoint_path.parent)
        .load(result.checkpoint_path)
        .state.tensors[f"model/{name}"]
    )
    return np.frombuffer(raw.data, np.float32)


def one_step(run: Runner, model: str, *, name: str, workers: int, more: str = "") -> RunResult:
    job = f"toy(model=lambda: {model}, epochs=None, steps=1, global_batch_size={BATCH}, schedule=lambda *_: 1.0{more})"
    return run(job, run=name, workers=workers)


def test_batch_normalisation_sees_a_workers_share_and_keeps_rank_zeros_statistics(run: Runner) -> None:
    from tests.launch.jobs.toy import inputs

    _, indices = step_indices(seed=5, step=0, num_examples=len(inputs), global_batch_size=BATCH)
    own = shares(BATCH, 2)[0]
    alone = tensor(one_step(run, NORMALISED, name="one", workers=1), "0.running_mean")
    shared = tensor(one_step(run, NORMALISED, name="two", workers=2), "0.running_mean")
    np.testing.assert_allclose(alone, 0.1 * inputs[indices].mean(0), atol=1e-6)
    np.testing.assert_allclose(shared, 0.1 * inputs[indices[own]].mean(0), atol=1e-6)
    assert np.abs(alone - shared).max() > 1e-3


def test_dropout_is_another_with_another_number_of_workers(run: Runner) -> None:
    model = "nn.Sequential(nn.Dropout(0.5), nn.Linear(12, 3))"
    one = tensor(one_step(run, model, name="one", workers=1), "1.weight")
    two = tensor(one_step(run, model, name="two", workers=2), "1.weight")
    again = tensor(one_step(run, model, name="again", workers=2), "1.weight")
    assert np.abs(one - two).max() > 1e-4
    np.testing.assert_array_equal(two, again)


def test_an_infinite_gradient_under_a_finite_loss_is_never_saved(run: Runner) -> None:
    """The square root's slope at zero is infinite, its value is not."""
    loss = "loss=lambda outputs, labels: (outputs * 0).sum().sqrt()"
    with pytest.raises(Fault, match=r"after step 1: the weights weight are not finite"):
        run(
            f"toy(model=lambda: nn.Linear(12, 3), epochs=None, steps=1, schedule=lambda *_: 1.0, {loss})",
            run="one",
        )
    with pytest.raises(Fault, match=r"step 2, worker \d: the loss is nan"):
        run(f"toy(model=lambda: nn.Linear(12, 3), schedule=lambda *_: 1.0, {loss})", run="on")
    assert not list((run.home / "on").glob("checkpoints/step-*"))


def test_a_parameter_the_loss_does_not_use_changes_nothing(run: Runner) -> None:
    model = "nn.ModuleList([nn.Linear(12, 3), nn.Linear(12, 3)])"
    step = "lambda model, batch: nn.functional.cross_entropy(model[0](batch[0]), batch[1])"
    job = f"toy(model=lambda: {model}, loss=None, step={step}, evaluate=Evaluate(metrics=()))"
    one, two = run(job, run="one", workers=1), run(job, run="two", workers=2)
    np.testing.assert_allclose(tensor(one, "0.weight"), tensor(two, "0.weight"), atol=1e-5)
    np.testing.assert_array_equal(tensor(one, "1.weight"), tensor(two, "1.weight"))


def test_another_function_of_the_same_name_is_not_noticed_on_resume(run: Runner) -> None:
    job = "toy(steps=9, epochs=None, schedule=lambda step, total: {factor})"
    run(job.format(factor=1.0), run="run")
    resumed = run(job.format(factor=0.5), run="run", resume=True)
    assert resumed.status == "done"
