"""Ways to a convolution's per-example gradients, their norms and their weighted sum.

B examples, I input channels, O output channels, K numbers of one output channel's filter, F numbers of one example's
gradient, in an order of the way's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import torch
from torch import Tensor

from leptonai.security.privacy.pytorch.compiled.library import library
from leptonai.security.privacy.pytorch.filters import FilterKernels, Geometry
from leptonai.security.privacy.pytorch.rounding import masked, repaired, squares_of

Norms = Callable[[], tuple[Tensor, Tensor | None]]
"""Gives squared norms (B,), and gradients (B, F) where they are worth keeping."""

_GRAM_FLOATS = 1 << 21
"""Gram matrices of more pixels than this are slower than the gradients."""
_PIECE = 32
"""Examples whose gradients are computed at once where no compiled kernel does them one by one."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A convolution and which of its parameters are trained.

    Args:
        geometry: its shape.
        weight, bias: trained or not; at least one is.
    """

    geometry: Geometry
    weight: bool
    bias: bool

    @property
    def num_numbers(self) -> int:
        """F, without padding."""
        geometry = self.geometry
        return geometry.out_channels * (geometry.num_taps * self.weight + self.bias)

    def worth_holding(self, inputs: Tensor, grads: Tensor) -> bool:
        """Whether all examples' gradients take no more memory than what they come from."""
        return grads.shape[0] * self.num_numbers <= inputs.numel() + grads.numel()


class Ways(Protocol):
    """What a record of a convolution asks for; inputs are (B, I, *inner), grads (B, O, *outer), both contiguous."""

    def norms(self, inputs: Tensor, grads: Tensor) -> dict[str, Norms]:
        """The ways to squared norms, by name."""
        ...

    def each(self, inputs: Tensor, grads: Tensor) -> Tensor:
        """Every example's gradient, (B, F)."""
        ...

    def sum(self, inputs: Tensor, grads: Tensor, factors_B: Tensor) -> Tensor:
        """The sum of the gradients times their factors, (F,); an example of factor 0 adds nothing."""
        ...

    def unpack(self, packed: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Filters (..., O, K) and biases (..., O) of gradients (..., F), where they are trained."""
        ...


def ways_of(layer: Layer, grads: Tensor) -> Ways:
    """The compiled kernels where they can be used, else torch's own operations."""
    outs = layer.geometry.out_channels // layer.geometry.groups
    on_cpu = grads.device.type == "cpu" and grads.dtype == torch.float32
    # A panel holds sixteen channels of one group: with two or fewer most of it would be empty.
    if layer.weight and on_cpu and outs > 2 and library() is not None:
        return Compiled(layer)
    return WithTorch(layer)


class Compiled:
    """The compiled kernels."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer
        self._kernels = _kernels(layer.geometry, layer.bias)

    def norms(self, inputs: Tensor, grads: Tensor) -> dict[str, Norms]:
        """Gradients held or forgotten, or Gram matrices."""
        found: dict[str, Norms] = {"compiled gradients": lambda: (self._kernels.squares(inputs, grads), None)}
        if self._layer.worth_holding(inputs, grads):
            found["compiled gradients, held"] = lambda: self._kernels.each(inputs, grads)
        geometry = self._layer.geometry
        if set(geometry.stride) == {1} and self._kernels.gram_floats <= _GRAM_FLOATS:
            found["compiled gram"] = lambda: (self._by_gram(inputs, grads), None)
        return found

    def each(self, inputs: Tensor, grads: Tensor) -> Tensor:
        """(B, F)."""
        return self._kernels.each(inputs, grads)[1]

    def sum(self, inputs: Tensor, grads: Tensor, factors_B: Tensor) -> Tensor:
        """(F,)."""
        return self._kernels.sum(inputs, grads, factors_B.contiguous())

    def unpack(self, packed: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Filters and biases."""
        return self._kernels.unpack(packed)

    def _by_gram(self, inputs: Tensor, grads: Tensor) -> Tensor:
        def exact(which: Tensor) -> Tensor:
            return self._kernels.squares(inputs[which], grads[which])

        squares_B, bounds_B = self._kernels.gram(inputs, grads)
        return repaired(squares_B, bounds_B, exact)


@lru_cache(maxsize=256)
def _kernels(geometry: Geometry, bias: bool) -> FilterKernels:
    return FilterKernels(geometry, bias=bias)


class WithTorch:
    """Torch's own operations, on any device."""

    def __init__(self, layer: Layer) -> None:
        self._layer = layer

    def norms(self, inputs: Tensor, grads: Tensor) -> dict[str, Norms]:
        """One convolution with a group for each example, or one matrix product for each."""
        if not self._layer.weight:
            return {"bias": lambda: self._squares(inputs, grads, self._by_groups)}
        return {
            "groups": lambda: self._squares(inputs, grads, self._by_groups),
            "products": lambda: self._squares(inputs, grads, self._by_products),
        }

    def each(self, inputs: Tensor, grads: Tensor) -> Tensor:
        """(B, F)."""
        return torch.cat(
            [self._by_groups(*piece) for piece in zip(inputs.split(_PIECE), grads.split(_PIECE), strict=True)]
        )

    def sum(self, inputs: Tensor, grads: Tensor, factors_B: Tensor) -> Tensor:
        """(F,)."""
        layer, geometry = self._layer, self._layer.geometry
        inputs, grads = masked(factors_B, inputs, grads)
        scaled = grads * factors_B.view(-1, *[1] * (grads.dim() - 1))
        _, filters, biases = torch.ops.aten.convolution_backward(
            scaled, inputs, self._weight_like(inputs, 1), [geometry.out_channels], geometry.stride, geometry.padding,
            geometry.dilation, False, [0], geometry.groups, (False, layer.weight, layer.bias),
        )  # fmt: skip
        return torch.cat([each.flatten() for each in (filters, biases) if each is not None])

    def unpack(self, packed: Tensor) -> tuple[Tensor | None, Tensor | None]:
        """Filters and biases."""
        layer, geometry = self._layer, self._layer.geometry
        count = geometry.out_channels * geometry.num_taps * layer.weight
        filters = packed[..., :count].unflatten(-1, (geometry.out_channels, -1)) if layer.weight else None
        return filters, packed[..., count:] if layer.bias else None

    def _squares(
        self, inputs: Tensor, grads: Tensor, way: Callable[[Tensor, Tensor], Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        hold = self._layer.worth_holding(inputs, grads)
        squares, held = [], []
        for piece in zip(inputs.split(_PIECE), grads.split(_PIECE), strict=True):
            packed_BF = way(*piece)
            squares.append(squares_of((packed_BF,)))
            if hold:
                held.append(packed_BF)
        return torch.cat(squares), torch.cat(held) if hold else None

    def _by_groups(self, inputs: Tensor, grads: Tensor) -> Tensor:
        geometry, num_examples = self._layer.geometry, grads.shape[0]
        if not self._layer.weight:
            return grads.flatten(2).sum(2)
        filters = torch.ops.aten.convolution_backward(
            grads.flatten(0, 1)[None], inputs.flatten(0, 1)[None], self._weight_like(inputs, num_examples), None,
            geometry.stride, geometry.padding, geometry.dilation, False, [0], geometry.groups * num_examples,
            (False, True, False),
        )[1]  # fmt: skip
        return self._packed(filters.reshape(num_examples, -1), grads)

    def _by_products(self, inputs: Tensor, grads: Tensor) -> Tensor:
        """Each tap's pixels copied out as a row, then one product for each example and group."""
        geometry, num_examples = self._layer.geometry, grads.shape[0]
        num_dims = len(geometry.kernel)
        sides = [side for pad in reversed(geometry.padding) for side in (pad, pad)]
        windows = torch.nn.functional.pad(inputs, sides)
        for dim in range(num_dims):
            reach = geometry.dilation[dim] * (geometry.kernel[dim] - 1) + 1
            windows = windows.unfold(2 + dim, reach, geometry.stride[dim])
        every: tuple[Any, ...] = (..., *(slice(None, None, step) for step in geometry.dilation))
        windows = windows[every]
        positions, kernel = range(2, 2 + num_dims), range(2 + num_dims, 2 + 2 * num_dims)
        columns = windows.permute(0, 1, *kernel, *positions).reshape(
            num_examples * geometry.groups, geometry.num_taps, geometry.num_positions
        )
        rows = grads.reshape(num_examples * geometry.groups, -1, geometry.num_positions)
        return self._packed((rows @ columns.transpose(1, 2)).reshape(num_examples, -1), grads)

    def _packed(self, filters_BF: Tensor, grads: Tensor) -> Tensor:
        return torch.cat([filters_BF, grads.flatten(2).sum(2)], 1) if self._layer.bias else filters_BF

    def _weight_like(self, inputs: Tensor, times: int) -> Tensor:
        """A tensor of the weight's shape; its numbers are never read."""
        outs, *rest = self._layer.geometry.weight_shape
        return inputs.new_empty((outs * times, *rest))
