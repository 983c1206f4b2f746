"""PyTorch models in memory of the parameter server, against plain PyTorch."""

from __future__ import annotations

import shutil
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.checkpoint import checkpoint

from leptonai.core.errors import Fault, InputError
from leptonai.testing import check_flat_learner
from leptonai.training.data.dataset import Arrays, Data
from leptonai.training.job import TrainJob
from leptonai.training.learner import Alone, LearnerState
from leptonai.training.optimizers import SGD, Adam
from leptonai.training.pytorch.flat import TorchFlatLearner
from leptonai.training.pytorch.learner import TorchLearner
from leptonai.training.pytorch.passes import TorchOptions

rng = np.random.default_rng(1)
X = rng.normal(size=(12, 5)).astype(np.float32)
Y = rng.integers(0, 3, size=12)
IMAGES = rng.normal(size=(12, 3, 6, 6)).astype(np.float32)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(16, 3)
    )


class Tied(nn.Module):
    """One weight used three times, and one never."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.unused = nn.Linear(5, 5), nn.Linear(5, 3), nn.Linear(2, 2)
        self.second = nn.Linear(5, 5)
        self.second.weight = self.first.weight

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        hidden = torch.tanh(self.second(torch.tanh(self.first(inputs))))
        return self.last(checkpoint(self.first, hidden, use_reentrant=True))


class Mixed(nn.Module):
    """A float32 layer, one in bfloat16, and one that is not trained."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.coarse = nn.Linear(5, 8), nn.Linear(8, 8, dtype=torch.bfloat16)
        self.frozen = nn.Linear(8, 3).requires_grad_(False)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return self.frozen(self.coarse(self.first(inputs).to(torch.bfloat16)).float())


def job(**changes: Any) -> TrainJob:
    settings: dict[str, Any] = {
        "model": net,
        "data": Data(train=Arrays(X, Y)),
        "loss": "cross_entropy",
        "optimizer": SGD(lr=0.1, momentum=0.9, weight_decay=0.01),
        "steps": 3,
        "global_batch_size": 12,
        "seed": 3,
    }
    return TrainJob(**{**settings, **changes})


class Memory:
    """What a parameter server gives a learner."""

    def __init__(self, learner: TorchFlatLearner) -> None:
        self.parameters = [values.copy() for values in learner.initial()]
        self.gradients = [np.full_like(values, np.nan) for values in self.parameters]
        learner.bind(self.parameters, self.gradients)


def by_hand(
    model: nn.Module, inputs: NDArray[Any] = X, cuts: tuple[slice, ...] = (slice(0, 12),)
) -> list[Any]:
    """Gradients that plain PyTorch accumulates over these cuts of the batch; None where it made none."""
    for cut in cuts:
        part = torch.from_numpy(np.ascontiguousarray(inputs[cut]))
        loss = nn.functional.cross_entropy(model(part), torch.from_numpy(Y[cut]))
        (loss * (len(part) / 12)).backward()
    return [p.grad for p in model.parameters() if p.requires_grad]


def same(ours: list[NDArray[np.float32]], theirs: list[Any]) -> None:
    for mine, their in zip(ours, theirs, strict=True):
        expected = np.zeros_like(mine) if their is None else their.float().reshape(-1).numpy()
        np.testing.assert_array_equal(mine, expected)


@pytest.mark.parametrize("model", [net, Tied])
def test_it_passes_the_check_of_flat_learners(model: Any) -> None:
    check_flat_learner(lambda: TorchFlatLearner(job(model=model), TorchOptions()), (X, Y))


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize(("model", "inputs"), [(net, X), (convolutions, IMAGES), (Tied, X), (Mixed, X)])
def test_gradients_are_bit_equal_to_plain_pytorch(model: Any, inputs: NDArray[Any], accumulate: int) -> None:
    learner = TorchFlatLearner(job(model=model, accumulate=accumulate), TorchOptions())
    memory = Memory(learner)
    torch.manual_seed(3)
    plain = model().train()
    size = 12 // accumulate
    for _ in range(2):  # the second time every place already holds numbers
        plain.zero_grad()
        cuts = tuple(slice(start, start + size) for start in range(0, 12, size))
        expected = by_hand(plain, inputs, cuts)
        learner.gradient((inputs, Y), num_examples=12, seed=0)
        if model is Mixed and accumulate > 1:  # plain PyTorch sums in bfloat16, this in float32
            assert all(np.isfinite(found).all() for found in memory.gradients)
        else:
            same(memory.gradients, expected)
    assert all(parameter.grad is None for parameter in learner.model.parameters())


def test_what_the_loss_does_not_reach_is_zero() -> None:
    learner = TorchFlatLearner(job(model=Tied), TorchOptions())
    memory = Memory(learner)
    learner.gradient((X, Y), num_examples=12, seed=0)
    names = [spec.name for spec in learner.tensors]
    assert names.count("first.weight") == 1
    assert "second.weight" not in names
    for spec, found in zip(learner.tensors, memory.gradients, strict=True):
        assert found.any() != spec.name.startswith("unused"), spec.name


def test_float32_parameters_are_the_memory_itself_and_others_are_copied_by_refresh() -> None:
    learner = TorchFlatLearner(job(model=Mixed), TorchOptions())
    memory = Memory(learner)
    specs = {spec.name: place for place, spec in enumerate(learner.tensors)}
    assert [spec.dtype for spec in learner.tensors] == ["F32", "F32", "BF16", "BF16"]
    model: Any = learner.model
    memory.parameters[specs["first.bias"]][:] = 2.5
    memory.parameters[specs["coarse.bias"]][:] = 1.25
    assert model.first.bias.tolist() == [2.5] * 8
    assert model.coarse.bias.tolist() != [1.25] * 8
    learner.refresh()
    assert model.coarse.bias.tolist() == [1.25] * 8
    before = [values.copy() for values in memory.parameters]
    learner.local_step((X, Y), lr_factor=1.0, seed=0)
    assert all((old != new).any() for old, new in zip(before, memory.parameters, strict=True))
    stepped = torch.from_numpy(memory.parameters[specs["coarse.bias"]])
    assert (stepped != stepped.bfloat16()).any(), "steps are taken in float32"
    torch.testing.assert_close(stepped.bfloat16(), model.coarse.bias.detach(), rtol=0, atol=0)


@pytest.mark.parametrize("model", [net, Mixed])
def test_memory_can_be_bound_anew_while_training(model: Any) -> None:
    still, moving = (TorchFlatLearner(job(model=model), TorchOptions()) for _ in range(2))
    first, other = Memory(still), Memory(moving)
    for step in range(3):
        still.local_step((X, Y), lr_factor=1.0, seed=step)
        moving.local_step((X, Y), lr_factor=1.0, seed=step)
        other.parameters = [values.copy() for values in other.parameters]
        moving.bind(other.parameters, other.gradients)
    for ours, theirs in zip(first.parameters, other.parameters, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    still.gradient((X, Y), num_examples=12, seed=0)
    moving.gradient((X, Y), num_examples=12, seed=0)
    for ours, theirs in zip(first.gradients, other.gradients, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_model_of_sparse_tables_alone_has_no_tensors_but_trains() -> None:
    from leptonai.training.parameter_server.tables.spec import RowSGD, Table
    from leptonai.training.pytorch.embedding import ShardedEmbedding

    table = Table(name="t", width=3, num_rows=8, rule=RowSGD(lr=0.1))
    learner = TorchFlatLearner(job(model=lambda: ShardedEmbedding(table, mode="mean")), TorchOptions())
    Memory(learner)
    assert learner.tensors == ()
    ids = np.arange(24).reshape(12, 2) % 8
    assert learner.gradient((ids, Y), num_examples=12, seed=0) > 0.0


@pytest.mark.parametrize("clip_norm", [None, 0.01])
def test_local_steps_are_those_of_the_ordinary_learner(clip_norm: float | None) -> None:
    settings = job(clip_norm=clip_norm, model=convolutions, optimizer=Adam(lr=0.01))
    flat, ordinary = (
        TorchFlatLearner(settings, TorchOptions()),
        TorchLearner(settings, Alone(), TorchOptions()),
    )
    Memory(flat)
    for step in range(3):
        lr_factor = 1.0 / (1 + step)
        ours = flat.local_step((IMAGES, Y), lr_factor=lr_factor, seed=step)
        theirs = ordinary.step([(IMAGES, Y)], num_examples=12, lr_factor=lr_factor, seed=step)
        assert ours == theirs
    same_state(flat.state(), ordinary.state())
    assert flat.evaluate([(IMAGES, Y)]) == ordinary.evaluate([(IMAGES, Y)])
    assert flat.train_metric_sums == ordinary.train_metric_sums


def same_state(left: LearnerState, right: LearnerState) -> None:
    assert left.tensors.keys() == right.tensors.keys()
    for name, raw in left.tensors.items():
        other = right.tensors[name]
        assert (raw.dtype, raw.shape, bytes(raw.data)) == (other.dtype, other.shape, bytes(other.data)), name


@pytest.mark.parametrize("model", [convolutions, Mixed])
def test_states_go_to_and_fro_between_flat_and_ordinary(model: Any) -> None:
    settings = job(model=model)
    ordinary = TorchLearner(settings, Alone(), TorchOptions())
    inputs = IMAGES if model is convolutions else X
    ordinary.step([(inputs, Y)], num_examples=12, lr_factor=1.0, seed=0)
    flat = TorchFlatLearner(settings, TorchOptions())
    memory = Memory(flat)
    model_only = LearnerState(
        tensors={name: raw for name, raw in ordinary.state().tensors.items() if name.startswith("model/")},
        values={},
    )
    flat.restore(model_only)
    trained = [p for p in ordinary.model.parameters() if p.requires_grad]
    for values, theirs in zip(memory.parameters, trained, strict=True):
        np.testing.assert_array_equal(values, theirs.detach().float().reshape(-1).numpy())
    same_state(flat.state(), model_only)
    if model is Mixed:
        return  # the ordinary optimiser works in bfloat16 there, this one in float32
    flat.restore(ordinary.state())
    same_state(flat.state(), ordinary.state())
    flat.local_step((inputs, Y), lr_factor=1.0, seed=1)
    ordinary.step([(inputs, Y)], num_examples=12, lr_factor=1.0, seed=1)
    same_state(flat.state(), ordinary.state())
    ordinary.restore(flat.state())


@pytest.mark.parametrize(
    "options",
    [
        TorchOptions(precision="bfloat16"),
        TorchOptions(memory_format="channels_last"),
        pytest.param(
            TorchOptions(compile=True),
            marks=[
                pytest.mark.slow,
                pytest.mark.skipif(not shutil.which("g++"), reason="no C++ compiler"),
            ],
        ),
    ],
    ids=["bfloat16", "channels_last", "compiled"],
)
def test_other_ways_to_compute_give_nearly_the_same_gradient(options: TorchOptions) -> None:
    model, inputs = (net, X) if options.compile else (convolutions, IMAGES)
    plain, other = (TorchFlatLearner(job(model=model), each) for each in (TorchOptions(), options))
    expected, found = Memory(plain), Memory(other)
    plain.gradient((inputs, Y), num_examples=12, seed=0)
    other.gradient((inputs, Y), num_examples=12, seed=0)
    tolerance = 0.05 if options.precision == "bfloat16" else 1e-5
    for ours, theirs in zip(found.gradients, expected.gradients, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=tolerance)
    assert found.gradients[0].any()


def test_dropout_follows_the_seed() -> None:
    learner = TorchFlatLearner(job(model=lambda: nn.Sequential(net(), nn.Dropout(0.5))), TorchOptions())
    memory = Memory(learner)

    def found(seed: int) -> list[float]:
        learner.gradient((X, Y), num_examples=12, seed=seed)
        return np.concatenate(memory.gradients).tolist()

    assert found(1) == found(1) != found(2)


def test_a_step_function_trains_a_sparse_embedding() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = nn.Embedding(6, 2, sparse=True)

        def forward(self, ids: torch.Tensor) -> torch.Tensor:
            return self.table(ids)

    learner = TorchFlatLearner(
        job(model=Words, loss=None, step=lambda model, batch: model(batch[0]).sum() / len(batch[0])),
        TorchOptions(),
    )
    memory = Memory(learner)
    learner.gradient((np.array([1, 1, 4]),), num_examples=3, seed=0)
    expected = [[0, 0], [2 / 3, 2 / 3], [0, 0], [0, 0], [1 / 3, 1 / 3], [0, 0]]
    np.testing.assert_allclose(memory.gradients[0].reshape(6, 2), expected)


def test_an_infinite_loss_is_a_fault_and_nothing_moves() -> None:
    learner = TorchFlatLearner(job(loss="mse", model=lambda: nn.Linear(5, 1)), TorchOptions())
    memory = Memory(learner)
    before = [values.copy() for values in memory.parameters]
    broken = (np.full((2, 5), np.inf, np.float32), np.zeros(2, np.float32))
    with pytest.raises(Fault, match="the loss is"):
        learner.gradient(broken, num_examples=2, seed=0)
    with pytest.raises(Fault, match="the loss is"):
        learner.local_step(broken, lr_factor=1.0, seed=0)
    for old, new in zip(before, memory.parameters, strict=True):
        np.testing.assert_array_equal(old, new)
    memory.parameters[0][0] = np.nan
    with pytest.raises(Fault, match="the weights weight are not finite"):
        learner.state()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Flatten, "Flatten has no trainable parameters"),
        (lambda: nn.Linear(2, 2).requires_grad_(False), "Linear has no trainable parameters"),
        (lambda: nn.Linear(2, 2, dtype=torch.float64), "the parameter weight is torch.float64"),
        (lambda: "a model", "returned str"),
    ],
)
def test_models_that_cannot_be_trained_so_are_refused(model: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TorchFlatLearner(job(model=model), TorchOptions())
