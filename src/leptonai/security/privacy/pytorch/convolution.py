"""Per-example gradients of convolutions in one, two and three dimensions.

B examples, I input channels, O output channels, F numbers of one example's gradient.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from leptonai.security.privacy.pytorch.choice import Chooser
from leptonai.security.privacy.pytorch.filters import Geometry
from leptonai.security.privacy.pytorch.filterways import Layer, Norms, ways_of
from leptonai.security.privacy.pytorch.linear import check_examples
from leptonai.security.privacy.pytorch.rounding import masked
from leptonai.security.privacy.pytorch.tape import Tape

_Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


class ConvolutionRule:
    """``nn.Conv1d``, ``nn.Conv2d`` and ``nn.Conv3d``, on inputs with an example dimension.

    Args:
        chooser: shared by rules that may share timed choices.
    """

    def __init__(self, chooser: Chooser | None = None) -> None:
        self._chooser = chooser or Chooser()

    def forward(self, module: nn.Module, tape: Tape, *inputs: Any, **options: Any) -> Any:
        """What ``module(*inputs)`` gives."""
        assert isinstance(module, _Convolution)
        value = inputs[0] if inputs else options["input"]
        check_examples(value, tape, min_dims=len(module.kernel_size) + 2)
        value, padding = _padded(module, value)
        return _Function.apply(tape.anchor, value, module, padding, tape, self._chooser)

    def refusal(self, module: nn.Module) -> str | None:
        """None: every convolution can be trained."""
        return None


def _padded(module: _Convolution, value: Tensor) -> tuple[Tensor, tuple[int, ...]]:
    """The input with all padding done that is not equally many zeros on both sides, and what is left to do."""
    none = (0,) * len(module.kernel_size)
    sides = tuple(module._reversed_padding_repeated_twice)
    if module.padding_mode != "zeros":
        return functional.pad(value, sides, mode=module.padding_mode), none
    if module.padding == "valid":
        return value, none
    if module.padding == "same":
        if sides[::2] != sides[1::2]:
            return functional.pad(value, sides), none
        return value, sides[::-2]
    assert not isinstance(module.padding, str)
    return value, tuple(module.padding)


class _Function(torch.autograd.Function):
    """The layer with its weight detached: the backward pass leaves a record instead of the weight's gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        anchor: Tensor,
        value: Tensor,
        module: _Convolution,
        padding: tuple[int, ...],
        tape: Tape,
        chooser: Chooser,
    ) -> Tensor:
        weight = module.weight.detach()
        ctx.save_for_backward(value, weight)
        ctx.rest = (module, padding, tape, chooser)
        bias = None if module.bias is None else module.bias.detach()
        return torch.convolution(
            value, weight, bias, module.stride, padding, module.dilation, False, [0], module.groups
        )

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        (grad,) = grads
        value, weight = ctx.saved_tensors
        module, padding, tape, chooser = ctx.rest
        tape.add(ConvolutionRecord(module, padding, value.detach(), grad, chooser))
        grad_input = None
        if ctx.needs_input_grad[1]:
            grad_input = torch.ops.aten.convolution_backward(
                grad, value, weight, None, module.stride, padding, module.dilation, False, [0], module.groups,
                (True, False, False),
            )[0]  # fmt: skip
        return None, grad_input, None, None, None, None


class ConvolutionRecord:
    """One use of a convolution.

    Gradients that take less memory than what they are computed from are computed at once and held in its place.

    Args:
        module: it.
        padding: zeros on both sides of each dimension.
        inputs: (B, I, *inner).
        grads: of the output, (B, O, *outer).
        chooser: of the way to norms and sums.
    """

    def __init__(
        self, module: _Convolution, padding: tuple[int, ...], inputs: Tensor, grads: Tensor, chooser: Chooser
    ) -> None:
        layer = Layer(
            geometry=Geometry(
                module.in_channels, module.out_channels, module.groups, tuple(inputs.shape[2:]),
                tuple(grads.shape[2:]), module.kernel_size, module.stride, padding, module.dilation,
            ),
            weight=module.weight.requires_grad,
            bias=module.bias is not None and module.bias.requires_grad,
        )  # fmt: skip
        self._layer = layer
        self._data: tuple[Tensor, Tensor] | None
        self.parameters = tuple(p for p in (module.weight, module.bias) if p is not None and p.requires_grad)
        self.key = ("convolution", layer, str(grads.device))
        self._ways = ways_of(layer, grads)
        self._data = (inputs.contiguous(), grads.contiguous())
        self._squares_B, self._held_BF = self._computed(chooser)
        if self._held_BF is not None:
            self._data = None

    def squared_norms_B(self) -> Tensor:
        """(B,) squared norms."""
        return self._squares_B

    def per_example(self) -> tuple[Tensor, ...]:
        """(B, O, I / groups, *kernel) and (B, O)."""
        if self._held_BF is None:
            assert self._data is not None
            self._held_BF = self._ways.each(*self._data)
        return self._shaped(self._held_BF)

    def add_weighted(self, factors_B: Tensor, out: tuple[Tensor, ...]) -> None:
        """Add the weighted sum."""
        for target, found in zip(out, self._shaped(self._sum(self._held_BF, factors_B)), strict=True):
            target.add_(found)

    def _computed(self, chooser: Chooser) -> tuple[Tensor, Tensor | None]:
        """Squared norms, and gradients if they are held, by the way that is fastest with the sum to come."""
        assert self._data is not None
        choices = self._ways.norms(*self._data)

        factors_B = self._data[1].new_ones(self._data[1].shape[0])

        def trial(norms: Norms) -> None:
            self._sum(norms()[1], factors_B)

        trials = {name: partial(trial, norms) for name, norms in choices.items()}
        return choices[chooser.choose(self.key, trials, size=factors_B.shape[0])]()

    def _sum(self, held_BF: Tensor | None, factors_B: Tensor) -> Tensor:
        if held_BF is not None:
            (held_BF,) = masked(factors_B, held_BF)
            return factors_B @ held_BF
        assert self._data is not None
        return self._ways.sum(*self._data, factors_B)

    def _shaped(self, packed: Tensor) -> tuple[Tensor, ...]:
        """As the parameters are shaped, each (..., *shape)."""
        filters, biases = self._ways.unpack(packed)
        shape = self._layer.geometry.weight_shape
        shaped = (None if filters is None else filters.reshape(*packed.shape[:-1], *shape), biases)
        return tuple(each for each in shaped if each is not None)
