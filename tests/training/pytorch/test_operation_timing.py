"""Operations timed alone: all of them are counted, and the model is as it was."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from leptonai.training.pytorch.operation_timing import of_passes, time_operations
from leptonai.training.pytorch.trace import trace


def mean_square(model: nn.Module, columns: tuple[torch.Tensor, ...]) -> torch.Tensor:
    found: torch.Tensor = (model(columns[0]) - columns[1]).square().mean()
    return found


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2)
    )


def columns(batch: int) -> tuple[torch.Tensor, ...]:
    return torch.randn(batch, 1, 8, 8), torch.randn(batch, 2)


def test_every_call_of_a_pass_is_counted() -> None:
    model = network()
    timed = time_operations(model, columns(8), mean_square, max_seconds=0.2)
    found = trace(model, columns(8), mean_square).operations
    assert timed.forward_calls == sum(each.calls for each in found if not each.backward)
    assert timed.backward_calls == sum(each.calls for each in found if each.backward)
    assert timed.forward_seconds > 0
    assert timed.backward_seconds > 0
    assert timed.batch == 8


def test_the_model_stays_as_it_is() -> None:
    model = network()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    time_operations(model, columns(4), mean_square, max_seconds=0.1)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_larger_operations_take_longer() -> None:
    model = nn.Linear(512, 512)
    few, many = (
        time_operations(model, (torch.randn(size, 512), torch.randn(size, 512)), mean_square, max_seconds=0.3)
        for size in (8, 512)
    )
    assert many.forward_seconds > 4 * few.forward_seconds


def test_the_median_pass_and_what_passes_vary_by() -> None:
    seconds = [1.0, 1.0, 2.0, 3.0, 3.0]
    found = of_passes([(each, 2 * each) for each in seconds])
    assert (found.forward, found.backward) == (2.0, 4.0)
    assert found.variation == pytest.approx(6.0 / 1.349 / 6.0)
    assert found.error == pytest.approx(found.variation / math.sqrt(5))


def test_workers_begin_together_and_only_then_is_it_counted() -> None:
    said: list[str] = []
    examples = torch.randn(4, 2), torch.randn(4, 2)
    time_operations(
        nn.Linear(2, 2), examples, mean_square, max_seconds=0.01, begin=lambda: said.append("ready")
    )
    assert said == ["ready"]


def test_an_expanded_tensor_is_copied_as_it_is() -> None:
    class Biased(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.ones(1, 4))

        def forward(self, rows_BC: torch.Tensor) -> torch.Tensor:
            return rows_BC * self.bias.expand(len(rows_BC), 4)

    timed = time_operations(Biased(), (torch.ones(3, 4), torch.ones(3, 4)), mean_square, max_seconds=0.1)
    assert timed.backward_calls > 0
