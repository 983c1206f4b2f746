"""What docs/pitfalls.md says of private training, where no other test shows it: steps as a worker takes them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from leptonai.core.privacy import Privacy
from leptonai.security.privacy.plan import plan_privately
from leptonai.security.privacy.pytorch.private_sum import PrivateSum
from leptonai.training.data.dataset import Arrays, Data
from leptonai.training.job import Evaluate, TrainJob
from leptonai.training.learner import Alone, Batch, shares
from leptonai.training.optimizers import SGD
from leptonai.training.pytorch.passes import TorchOptions
from leptonai.training.pytorch.summed import SummedLearner

BATCH = 60
KEY = bytes(range(32))
PLAN = plan_privately(
    Privacy(delta=1e-5, noise_multiplier=2.0),
    num_units=5_000,
    batch_size=BATCH,
    steps=10,
    num_parameters=2_323,
)


def create_model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(12, 145), nn.Tanh(), nn.Linear(145, 3))


def examples(count: int) -> Batch:
    rng = np.random.default_rng(3)
    return rng.normal(size=(count, 12)).astype(np.float32), rng.integers(0, 3, count)


class Method:
    """As much of a step method as a learner asks for, with noise that tests can repeat."""

    def __init__(self, key: bytes) -> None:
        self._key = key

    def gradients(self, model: Any) -> PrivateSum:
        return PrivateSum(model, PLAN, key=self._key)


def learner(key: bytes = KEY) -> SummedLearner:
    job = TrainJob(
        model=create_model, data=Data(train=Arrays(*examples(BATCH))), loss="cross_entropy",
        optimizer=SGD(lr=1.0), steps=10, global_batch_size=BATCH, evaluate=Evaluate(metrics=()),
    )  # fmt: skip
    made: Any = Method(key)
    return SummedLearner(job, Alone(), TorchOptions(), made)


def weights(of: SummedLearner) -> NDArray[np.float32]:
    return np.concatenate([each.detach().numpy().ravel() for each in of.parameters])


def move(of: SummedLearner, micro_batches: list[Batch]) -> NDArray[np.float32]:
    """What one step adds to the weights."""
    before = weights(of)
    of.step(micro_batches, num_examples=sum(len(each[0]) for each in micro_batches), lr_factor=1.0, seed=1)
    return weights(of) - before


def test_accumulated_gradients_get_the_noise_of_one_step() -> None:
    batch = examples(BATCH)
    cuts = [tuple(column[cut] for column in batch) for cut in shares(BATCH, 3)]
    together, accumulated = move(learner(), [batch]), move(learner(), cuts)
    assert together.std() == pytest.approx(2.0 / BATCH, rel=0.1)  # mostly noise
    np.testing.assert_allclose(accumulated, together, atol=1e-6)
    one_by_one = learner()
    thrice = sum(move(one_by_one, [cut]) for cut in cuts)
    assert np.std(thrice) > 1.5 * together.std()  # a step for each part would have been another thing


@pytest.mark.parametrize("num_workers", [2, 4])
def test_workers_together_add_the_noise_of_one(num_workers: int) -> None:
    sums = [PrivateSum(create_model(), PLAN, key=bytes([rank] * 32)) for rank in range(num_workers)]
    once = sum(each.part(leads=rank == 0).copy() for rank, each in enumerate(sums))
    assert np.std(once) == pytest.approx(2.0, rel=0.1)
    each_of_them = sum(each.part(leads=True).copy() for each in sums)
    assert np.std(each_of_them) > 1.3 * 2.0


def test_a_step_without_examples_is_noise_and_moves_the_weights() -> None:
    found = move(learner(), [])
    assert found.std() == pytest.approx(2.0 / BATCH, rel=0.1)
    assert (found != 0).all()


@pytest.mark.parametrize("poison", [np.nan, np.inf, 1e38])
def test_a_poisoned_example_neither_spoils_nor_stops_a_step(poison: float) -> None:
    inputs, labels = examples(BATCH)
    inputs[7] = poison
    kept = np.arange(BATCH) != 7
    with_it = move(learner(), [(inputs, labels)])
    without = move(learner(), [(inputs[kept], labels[kept])])
    assert np.isfinite(with_it).all()
    assert np.linalg.norm(with_it - without) <= PLAN.clip / BATCH * (1 + 1e-5)


def test_a_checkpoint_holds_no_noise_and_nothing_to_make_it_from() -> None:
    batch = examples(BATCH)
    interrupted = learner()
    move(interrupted, [batch])
    state = interrupted.state()
    written = b"".join(bytes(tensor.data) for tensor in state.tensors.values())
    words = json.dumps(state.values)
    assert KEY not in written
    assert KEY.hex() not in words
    assert state.values["step_method"] == {"clip": 1.0}
    resumed = learner(bytes(32))
    resumed.restore(state)
    assert np.array_equal(weights(resumed), weights(interrupted))
    assert np.abs(move(resumed, [batch]) - move(interrupted, [batch])).max() > 0.01


def test_the_seed_of_the_job_decides_no_noise() -> None:
    torch.manual_seed(1)
    first = PrivateSum(create_model(), PLAN).part(leads=True).copy()
    torch.manual_seed(1)
    np.random.seed(1)
    second = PrivateSum(create_model(), PLAN).part(leads=True).copy()
    assert np.abs(first - second).max() > 1.0


def test_the_model_that_is_trained_is_the_one_that_is_saved() -> None:
    made = learner()
    before = {name: tensor.clone() for name, tensor in made.model.state_dict().items()}
    move(made, [examples(BATCH)])
    saved = made.state().tensors
    for name, tensor in made.model.state_dict().items():
        assert not torch.equal(tensor, before[name])
        assert bytes(saved[f"model/{name}"].data) == tensor.numpy().tobytes()


def test_one_more_moves_the_sum_by_the_clip_and_one_replaced_by_twice_that() -> None:
    """Why the neighbours are said: by ``replace one`` this epsilon would be another."""
    model = nn.Linear(1, 1, bias=False)

    def summed(*inputs: float) -> float:
        column = np.array(inputs, np.float32)[:, None]
        made = PrivateSum(model, PLAN)
        made.add(lambda batch: 1e3 * model(torch.from_numpy(batch[0])).mean(), (column,))
        return float(made.part(leads=False)[0])

    assert abs(summed(1.0, 5.0) - summed(1.0)) == pytest.approx(PLAN.clip, rel=1e-5)
    assert abs(summed(1.0, 5.0) - summed(1.0, -5.0)) == pytest.approx(2 * PLAN.clip, rel=1e-5)


@pytest.mark.parametrize("count", [0, 1, BATCH, 2 * BATCH])
def test_the_divisor_does_not_count_the_examples(count: int) -> None:
    made, batch = learner(), examples(count)
    again = PrivateSum(made.model, PLAN, key=KEY)

    def loss(given: Batch) -> torch.Tensor:
        inputs, labels = (torch.from_numpy(column) for column in given)
        return nn.functional.cross_entropy(made.model(inputs), labels)

    if count:
        again.add(loss, batch)
    summed_P = again.part(leads=True).copy()
    np.testing.assert_allclose(move(made, [batch] if count else []), -summed_P / BATCH, atol=1e-6)
