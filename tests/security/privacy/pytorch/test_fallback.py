"""The fallback: what it can run, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from leptonai.core.errors import InputError
from leptonai.security.privacy.pytorch.clipper import Clipper
from leptonai.security.privacy.pytorch.fallback import FallbackRule


class Own(nn.Module):
    """One raw parameter; ``how`` says what is done with it."""

    def __init__(self, how: Any) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((3,), 2.0))
        self.register_buffer("mean", torch.zeros(3))
        self.how = how

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return self.how(self, *inputs, **options)


def _sum(model: nn.Module, x: Tensor, **options: Any) -> Tensor:
    clipper = Clipper(model, clip=1e6)
    clipper.add(lambda: _first(model(x, **options)).sum() / len(x), len(x))
    return clipper.sum_P


def _first(out: Any) -> Tensor:
    found: Tensor = out[0] if isinstance(out, tuple) else out
    return found


X = torch.arange(12.0).view(4, 3)


def test_results_may_be_tuples_and_options_need_not_be_tensors() -> None:
    model = Own(lambda self, x, *, power, extra=None: (self.gain * x**power, {"input": x}))
    torch.testing.assert_close(_sum(model, X, power=2, extra=None), (X**2).sum(0))


def test_a_branch_on_the_data_runs_in_a_loop() -> None:
    calls: list[int] = []

    def how(self: Own, x: Tensor) -> Tensor:
        calls.append(len(x))
        return self.gain * x if float(x.sum()) > 10 else x * 0

    model = Own(how)
    torch.testing.assert_close(_sum(model, X), X[1:].sum(0))
    assert calls.count(1) >= 4


def test_children_run_by_their_own_forward() -> None:
    class Parent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = nn.Parameter(torch.zeros(3))
            self.inner = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.inner(x + self.shift)
            return found.square()

    torch.manual_seed(0)
    model, x = Parent(), torch.randn(4, 3)
    total = _sum(model, x)
    (model(x).sum()).backward()
    grads = torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None])
    torch.testing.assert_close(total, grads, rtol=1e-4, atol=1e-5)


def test_random_numbers_differ_between_examples() -> None:
    model = Own(lambda self, x: nn.functional.dropout(self.gain * x, 0.5))
    torch.manual_seed(0)
    x = torch.ones(64, 3)
    seen: list[Tensor] = []

    def loss() -> Tensor:
        seen.append(model(x))
        return seen[0].sum() / 64

    Clipper(model, clip=1e6).add(loss, 64)
    assert 0.2 < float((seen[0] == 0).float().mean()) < 0.8
    assert len(torch.unique(seen[0], dim=0)) > 1


def test_a_tied_parameter_of_two_raw_modules_is_one() -> None:
    one, two = Own(lambda self, x: self.gain * x), Own(lambda self, x: self.gain + x)
    two.gain = one.gain
    model = nn.Sequential(one, two)
    clipper = Clipper(model, clip=1e6)
    clipper.add(lambda: model(X).sum() / 4, 4)
    torch.testing.assert_close(clipper.sum_P, (X + 1).sum(0))
    torch.testing.assert_close(clipper.last_norms_B, (X + 1).norm(dim=1))


def _grow(self: Own, x: Tensor) -> Tensor:
    self.mean.add_(x.mean(0))
    return self.gain * x


def _assign(self: Own, x: Tensor) -> Tensor:
    self.mean = self.mean + 1
    return self.gain * x


@pytest.mark.parametrize("how", [_grow, _assign])
def test_a_buffer_that_follows_the_data_is_refused(how: Any) -> None:
    with pytest.raises(InputError, match="buffer mean changes"):
        _sum(Own(how), X)


@pytest.mark.parametrize(
    ("how", "word"),
    [
        (lambda self, x: (self.gain * x).sum(), "single examples"),
        (lambda self, x: torch.cat([self.gain * x] * 2), "single examples"),
        (lambda self, x: self.gain * x[1:], "single examples"),
    ],
)
def test_a_module_that_cannot_treat_one_example_is_named(how: Any, word: str) -> None:
    with pytest.raises(InputError, match=f"Own.*{word}"):
        _sum(Own(how), X)


def test_inputs_must_hold_the_examples() -> None:
    model = Own(lambda self, x: self.gain * x)
    with pytest.raises(InputError, match="examples of the pass"):
        Clipper(model, clip=1.0).add(lambda: model(X).sum(), 3)
    alone = Own(lambda self: self.gain)
    with pytest.raises(InputError, match="no tensor"):
        Clipper(alone, clip=1.0).add(lambda: alone().sum(), 3)


def test_it_refuses_nothing_beforehand() -> None:
    assert FallbackRule().refusal(Own(_grow)) is None
