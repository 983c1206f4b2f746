"""PyTorch's side of the loop, one worker, against plain PyTorch written out by hand."""

from __future__ import annotations

import itertools
import math
import shutil

import numpy as np
import pytest
import torch
import torch._dynamo
from torch import nn

from leptonai.core.errors import Fault, InputError
from leptonai.training.data.dataset import Arrays, Data
from leptonai.training.job import Evaluate, TrainJob
from leptonai.training.learner import Alone, Learner
from leptonai.training.optimizers import SGD, Adagrad, Adam, AdamW, Lamb
from leptonai.training.pytorch.learner import TorchLearner
from leptonai.training.pytorch.losses import build_optimizer, loss_function, metric_function
from leptonai.training.pytorch.passes import TorchOptions
from leptonai.training.pytorch.tensors import from_raw, to_raw

rng = np.random.default_rng(1)
X = rng.normal(size=(12, 5)).astype(np.float32)
Y = rng.integers(0, 3, size=12)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3))


def job(**changes: object) -> TrainJob:
    settings: dict[str, object] = {
        "model": net,
        "data": Data(train=Arrays(X, Y)),
        "loss": "cross_entropy",
        "optimizer": SGD(lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True),
        "steps": 3,
        "global_batch_size": 12,
        "seed": 3,
    }
    return TrainJob(**{**settings, **changes})  # type: ignore[arg-type]


def learner(**changes: object) -> TorchLearner:
    return TorchLearner(job(**changes), Alone(), TorchOptions())


def by_hand(steps: int, lr: float = 0.1, clip: float | None = None) -> nn.Module:
    torch.manual_seed(3)
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9, weight_decay=0.01, nesterov=True)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(torch.from_numpy(X)), torch.from_numpy(Y)).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
    return model


def assert_same_weights(left: nn.Module, right: nn.Module, atol: float = 1e-6) -> None:
    for ours, theirs in zip(left.parameters(), right.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


@pytest.mark.parametrize("cuts", [[12], [4, 4, 4], [7, 5], [1] * 12])
def test_accumulated_unequal_micro_batches_give_the_gradient_of_the_whole_batch(cuts: list[int]) -> None:
    ours: Learner = learner()
    edges = np.cumsum([0, *cuts])
    micro = [(X[a:b], Y[a:b]) for a, b in itertools.pairwise(edges)]
    for _ in range(3):
        loss = ours.step(micro, num_examples=12, lr_factor=1.0, seed=0)
    assert isinstance(ours, TorchLearner)
    assert_same_weights(ours.model, by_hand(3))
    assert 0 < loss / 12 < 2


@pytest.mark.parametrize("clip", [None, 0.05])
def test_the_gradients_norm_is_that_before_clipping(clip: float | None) -> None:
    ours = learner(clip_norm=clip)
    assert ours.gradient_norm is None
    ours.step([(X, Y)], num_examples=12, lr_factor=1.0, seed=0)
    torch.manual_seed(3)
    model = net()
    nn.functional.cross_entropy(model(torch.from_numpy(X)), torch.from_numpy(Y)).backward()
    squares = sum(float((each.grad.double() ** 2).sum()) for each in model.parameters())
    assert ours.gradient_norm == pytest.approx(math.sqrt(squares), rel=1e-5)


def test_clipping_and_learning_rate_factor_are_applied() -> None:
    ours = learner(clip_norm=0.05)
    for _ in range(3):
        ours.step([(X, Y)], num_examples=12, lr_factor=0.5, seed=0)
    assert_same_weights(ours.model, by_hand(3, lr=0.05, clip=0.05))
    assert ours.base_learning_rate == 0.1


def test_a_custom_step_replaces_the_loss() -> None:
    def step(model: nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        inputs, labels = batch
        return nn.functional.cross_entropy(model(inputs), labels)

    ours = learner(loss=None, step=step)
    for _ in range(3):
        ours.step([(X, Y)], num_examples=12, lr_factor=1.0, seed=0)
    assert_same_weights(ours.model, by_hand(3))
    assert set(ours.evaluate([(X, Y)])) == {"loss"}


def test_a_loss_that_is_not_finite_changes_nothing() -> None:
    ours = learner()
    before = [parameter.clone() for parameter in ours.model.parameters()]
    with pytest.raises(Fault, match="the loss is nan"):
        ours.step([(X * np.float32("nan"), Y)], num_examples=12, lr_factor=1.0, seed=0)
    assert all(torch.equal(a, b) for a, b in zip(before, ours.model.parameters(), strict=True))


def test_a_loss_of_several_numbers_is_the_callers_to_fix() -> None:
    ours = learner(
        loss=lambda outputs, labels: nn.functional.cross_entropy(outputs, labels, reduction="none")
    )
    with pytest.raises(InputError, match="must be one number"):
        ours.step([(X, Y)], num_examples=12, lr_factor=1.0, seed=0)


def test_evaluation_sums_over_batches_of_any_size() -> None:
    ours = learner(evaluate=Evaluate(metrics=("accuracy",)))
    whole = ours.evaluate([(X, Y)])
    parts = ours.evaluate([(X[:5], Y[:5]), (X[5:], Y[5:])])
    assert whole["accuracy"] == parts["accuracy"]
    assert whole["loss"] == pytest.approx(parts["loss"], rel=1e-6)
    outputs = ours.model(torch.from_numpy(X)).argmax(1).numpy()
    assert whole["accuracy"] == float((outputs == Y).sum())


@pytest.mark.parametrize(
    "optimizer", [SGD(lr=0.1, momentum=0.9), Adam(lr=0.01), AdamW(lr=0.01), Adagrad(lr=0.1)]
)
def test_a_snapshot_taken_over_goes_on_bit_for_bit(optimizer: object) -> None:
    calm, broken = learner(optimizer=optimizer), learner(optimizer=optimizer)
    for each in (calm, broken):
        each.step([(X, Y)], num_examples=12, lr_factor=1.0, seed=0)
    other = learner(optimizer=optimizer, seed=99)
    other.restore(broken.state())
    for each in (calm, other):
        each.step([(X, Y)], num_examples=12, lr_factor=0.7, seed=1)
    assert all(
        torch.equal(a, b) for a, b in zip(calm.model.parameters(), other.model.parameters(), strict=True)
    )


def test_an_optimiser_that_pytorch_does_not_have_is_refused() -> None:
    with pytest.raises(InputError, match="PyTorch has no LAMB"):
        learner(optimizer=Lamb())


def test_a_snapshot_of_another_model_or_optimizer_is_refused() -> None:
    state = learner().state()
    with pytest.raises(InputError, match="does not fit"):
        learner(model=lambda: nn.Linear(5, 3)).restore(state)
    with pytest.raises(InputError, match="optimizer SGD, the job has Adam"):
        learner(optimizer=Adam()).restore(state)


def test_a_model_without_parameters_is_the_callers_to_fix() -> None:
    with pytest.raises(InputError, match="no trainable parameters"):
        learner(model=nn.Tanh)


def test_a_pytorch_job_needs_a_loss() -> None:
    with pytest.raises(InputError, match="needs a loss or a step"):
        learner(loss=None)


def test_bfloat16_keeps_float32_weights_and_learns() -> None:
    ours = TorchLearner(job(), Alone(), TorchOptions(precision="bfloat16"))
    losses = [ours.step([(X, Y)], num_examples=12, lr_factor=1.0, seed=0) for _ in range(20)]
    assert losses[-1] < losses[0]
    assert {parameter.dtype for parameter in ours.model.parameters()} == {torch.float32}


def test_channels_last_gives_the_same_convolution() -> None:
    def conv() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 3))

    images = rng.normal(size=(12, 3, 6, 6)).astype(np.float32)
    changes = {"model": conv, "data": Data(train=Arrays(images, Y))}
    plain = TorchLearner(job(**changes), Alone(), TorchOptions())
    last = TorchLearner(job(**changes), Alone(), TorchOptions(memory_format="channels_last"))
    for each in (plain, last):
        each.step([(images, Y)], num_examples=12, lr_factor=1.0, seed=0)
    assert_same_weights(plain.model, last.model, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (3, 2)])
def test_tensors_survive_the_way_to_bytes_and_back(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    tensor = (torch.randn(shape) * 3).to(dtype)
    back = from_raw(to_raw(tensor))
    assert back.dtype == dtype
    assert torch.equal(back, tensor)


def test_named_losses_and_metrics() -> None:
    logits, signs = torch.tensor([[2.0], [-1.0]]), torch.tensor([1, 1])
    expected = (math.log1p(math.exp(-2)) + math.log1p(math.exp(1))) / 2
    assert float(loss_function("binary_cross_entropy")(logits, signs)) == pytest.approx(expected)
    assert metric_function("accuracy")(logits, signs).tolist() == [1.0, 0.0]
    assert float(loss_function("mse")(torch.tensor([[1.0], [4.0]]), torch.tensor([1.0, 2.0]))) == 2.0
    assert metric_function("mae")(torch.tensor([[1.0], [4.0]]), torch.tensor([1.0, 2.0])).tolist() == [
        0.0,
        2.0,
    ]
    one_hot = torch.eye(3)[[0, 2]]
    assert metric_function("accuracy")(torch.tensor([[5.0, 0, 0], [5.0, 0, 0]]), one_hot).tolist() == [
        1.0,
        0.0,
    ]


def test_an_optimizer_function_gets_the_parameters() -> None:
    made = build_optimizer(job(optimizer=lambda p: torch.optim.RMSprop(p, lr=0.5)), net().parameters())
    assert isinstance(made, torch.optim.RMSprop)
    with pytest.raises(InputError, match="optimizer\\(\\) returned"):
        build_optimizer(job(optimizer=lambda p: 3), net().parameters())


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on CPUs")
def test_compilation_happens_and_alters_only_rounding() -> None:
    torch._dynamo.reset()  # what another test compiled of the same code would be taken
    torch._dynamo.utils.counters.clear()
    ours = TorchLearner(job(), Alone(), TorchOptions(compile=True))
    for _ in range(3):
        ours.step([(X, Y)], num_examples=12, lr_factor=1.0, seed=0)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert_same_weights(ours.model, by_hand(3), atol=1e-5)
    assert {name for name in ours.state().tensors if name.startswith("model/")} == {
        f"model/{name}" for name in net().state_dict()
    }
