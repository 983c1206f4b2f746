"""What docs/pitfalls.md says of parameter servers, where no other test shows it already."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from leptonai.training.data.dataset import Arrays, Data
from leptonai.training.job import TrainJob
from leptonai.training.optimizers import SGD, Adam, Optimizer
from leptonai.training.parameter_server.consistency import Asp, Diloco, LocalSgd
from leptonai.training.parameter_server.coordinator import Coordinator
from leptonai.training.parameter_server.kernels import num_states
from leptonai.training.parameter_server.numpy_kernels import NumpyKernels
from leptonai.training.parameter_server.served_loop import clip
from leptonai.training.parameter_server.work import Compute
from leptonai.training.pytorch.flat import TorchFlatLearner
from leptonai.training.pytorch.passes import TorchOptions

RNG = np.random.default_rng(4)
X = RNG.normal(size=(16, 3)).astype(np.float32)
Y = RNG.integers(0, 2, size=16)


def way(optimizer: Optimizer, *, pushes: int, steps: int = 3) -> float:
    """How far parameters go in steps whose gradient comes in so many equal parts, each applied as it comes."""
    kernels = NumpyKernels(optimizer)
    parameters, states = np.zeros(16, np.float32), np.zeros((num_states(optimizer), 16), np.float32)
    for step in range(steps):
        for part in range(pushes):
            number = step * pushes + part + 1
            gradient = np.full(16, 1.0 / pushes, np.float32)
            kernels.update(parameters, gradient, states, lr=0.1, step=number)
    return float(-parameters[0])


def test_plain_sgd_goes_as_far_by_parts_and_adam_as_often_as_there_are_parts() -> None:
    assert way(SGD(lr=0.1), pushes=4) == pytest.approx(way(SGD(lr=0.1), pushes=1))
    assert way(Adam(lr=0.1), pushes=4) == pytest.approx(4 * way(Adam(lr=0.1), pushes=1), rel=1e-3)


def test_momentum_decays_by_the_push() -> None:
    momentum = SGD(lr=0.1, momentum=0.9)
    assert way(momentum, pushes=4) > 1.5 * way(momentum, pushes=1)


def test_clipping_each_part_is_not_clipping_the_sum() -> None:
    parts = [np.array([6.0, 0.0], np.float32), np.array([-5.0, 0.0], np.float32)]
    whole: NDArray[np.float32] = parts[0] + parts[1]  # norm 1: clipping to 2 leaves it alone
    for part in parts:
        clip([part], 2.0)
    np.testing.assert_allclose(whole, [1.0, 0.0])
    np.testing.assert_allclose(parts[0] + parts[1], [0.0, 0.0], atol=1e-6)


@pytest.mark.parametrize("mode", [Diloco(steps=100), LocalSgd(steps=100)])
def test_an_epoch_shorter_than_a_round_cuts_the_round(mode: Diloco | LocalSgd) -> None:
    run = Coordinator(num_examples=64, global_batch_size=8, total_steps=400, mode=mode, num_workers=2)
    deals = [deal for worker in range(2) for deal in run.join(worker) if isinstance(deal, Compute)]
    assert [len(deal.pieces) for deal in deals] == [8, 8]  # an epoch has eight steps


def test_the_end_of_an_epoch_is_a_barrier_whatever_the_mode() -> None:
    run = Coordinator(num_examples=8, global_batch_size=8, total_steps=2, mode=Asp(), num_workers=2)
    fast, _ = (deal for worker in range(2) for deal in run.join(worker) if isinstance(deal, Compute))
    assert not run.applied(0, fast.deal, staleness=0)  # the next epoch begins when the other has done too


def test_a_new_workers_running_statistics_begin_anew() -> None:
    job = TrainJob(
        model=lambda: nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2)), data=Data(train=Arrays(X, Y)),
        loss="cross_entropy", optimizer=SGD(lr=0.1), steps=3, global_batch_size=16,
    )  # fmt: skip
    first, late = (TorchFlatLearner(job, TorchOptions()) for _ in range(2))
    parameters = [values.copy() for values in first.initial()]
    gradients = [np.zeros_like(values) for values in parameters]
    first.bind(parameters, gradients)
    for seed in range(3):
        first.gradient((X, Y), num_examples=16, seed=seed)
    late.bind(parameters, gradients)  # all that a new worker gets
    assert torch.count_nonzero(first.model[0].running_mean) == 3  # type: ignore[index]
    assert torch.count_nonzero(late.model[0].running_mean) == 0  # type: ignore[index]
    torch.testing.assert_close(first.model[1].weight, late.model[1].weight)  # type: ignore[index]
