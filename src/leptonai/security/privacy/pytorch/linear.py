"""Per-example gradients of linear layers, on single rows and on sequences.

B examples, T positions of an example, N = B * T, I input features, O output features.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from leptonai.core.errors import InputError
from leptonai.security.privacy.pytorch import sequences
from leptonai.security.privacy.pytorch.choice import Chooser
from leptonai.security.privacy.pytorch.rounding import masked, squares_of
from leptonai.security.privacy.pytorch.tape import Tape


class LinearRule:
    """``nn.Linear`` with the examples in the first dimension of its input.

    Args:
        chooser: shared by rules that may share timed choices.
    """

    def __init__(self, chooser: Chooser | None = None) -> None:
        self._chooser = chooser or Chooser()

    def forward(self, module: nn.Module, tape: Tape, *inputs: Any, **options: Any) -> Any:
        """What ``module(*inputs)`` gives."""
        assert isinstance(module, nn.Linear)
        value = inputs[0] if inputs else options["input"]
        check_examples(value, tape, min_dims=2)
        return _Linear.apply(tape.anchor, value, module, tape, self._chooser)

    def refusal(self, module: nn.Module) -> str | None:
        """None: every linear layer can be trained."""
        return None


def _bucket(count: int) -> int:
    """The power of two next to ``count`` from above: sequences of about equal length share a choice."""
    return 1 << max(0, count - 1).bit_length()


def check_examples(value: Tensor, tape: Tape, *, min_dims: int) -> None:
    """Refuse an input whose first dimension is not the examples.

    Raises:
        InputError: it has too few dimensions, or another size.
    """
    if value.dim() < min_dims or value.shape[0] != tape.num_examples:
        raise InputError(
            f"expected {tape.num_examples} examples in the input's first dimension, "
            f"found shape {tuple(value.shape)}",
            hint="keep the examples in the first dimension of every layer's input",
        )


class _Linear(torch.autograd.Function):
    """The layer with its weight detached: the backward pass leaves a record instead of the weight's gradient."""

    @staticmethod
    def forward(
        ctx: Any, anchor: Tensor, value: Tensor, module: nn.Linear, tape: Tape, chooser: Chooser
    ) -> Tensor:
        weight = module.weight.detach()
        ctx.save_for_backward(value, weight)
        ctx.rest = (module, tape, chooser)
        return functional.linear(value, weight, None if module.bias is None else module.bias.detach())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        value, weight = ctx.saved_tensors
        module, tape, chooser = ctx.rest
        tape.add(LinearRecord(module, value.detach(), grad, chooser))
        grad_input = grad @ weight if ctx.needs_input_grad[1] else None
        return None, grad_input, None, None, None


class LinearRecord:
    """One use of a linear layer.

    Args:
        module: it.
        inputs: (B, ..., I).
        grads: of the output, (B, ..., O).
        chooser: of the way to the norms.
    """

    def __init__(self, module: nn.Linear, inputs: Tensor, grads: Tensor, chooser: Chooser) -> None:
        self._weight = module.weight.requires_grad
        self._bias = module.bias is not None and module.bias.requires_grad
        self.parameters = tuple(p for p in (module.weight, module.bias) if p is not None and p.requires_grad)
        num_examples = grads.shape[0]
        self._inputs_BTI = inputs.reshape(num_examples, -1, inputs.shape[-1])
        self._grads_BTO = grads.reshape(num_examples, -1, grads.shape[-1])
        self._chooser = chooser
        positions, features = self._inputs_BTI.shape[1:]
        self.key = (
            "linear", _bucket(positions), features, grads.shape[-1], self._weight, self._bias, str(grads.device),
        )  # fmt: skip

    def squared_norms_B(self) -> Tensor:
        """(B,) squared norms: of a product for single rows, else by the fastest way."""
        inputs, grads = self._inputs_BTI, self._grads_BTO
        if not self._weight:
            return squares_of((grads.sum(1),))
        if inputs.shape[1] == 1:
            of_inputs_B = torch.linalg.vector_norm(inputs[:, 0], dim=1).square_()
            of_grads_B = torch.linalg.vector_norm(grads[:, 0], dim=1).square_()
            squares_B: Tensor = of_grads_B.mul_(of_inputs_B.add_(1.0) if self._bias else of_inputs_B)
            return squares_B
        ways: dict[str, Callable[[], Tensor]] = {
            name: partial(way, inputs, grads, bias=self._bias)
            for name, way in sequences.ways(inputs, grads).items()
        }
        return ways[self._chooser.choose(self.key, ways, size=grads.shape[0])]()

    def per_example(self) -> tuple[Tensor, ...]:
        """(B, O, I) and (B, O)."""
        found = []
        if self._weight:
            found.append(self._grads_BTO.transpose(1, 2) @ self._inputs_BTI)
        if self._bias:
            found.append(self._grads_BTO.sum(1))
        return tuple(found)

    def add_weighted(self, factors_B: Tensor, out: tuple[Tensor, ...]) -> None:
        """Add the weighted sum."""
        inputs, grads = masked(factors_B, self._inputs_BTI, self._grads_BTO)
        weight = out[0] if self._weight else None
        bias = out[-1] if self._bias else None
        sequences.add_weighted(inputs, grads, factors_B, weight, bias)
