"""Filter gradients of convolutions by the compiled kernels, one example at a time.

B examples, I input channels, O output channels, K numbers of one output channel's filter.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from leptonai.security.privacy.pytorch.compiled.library import Shape, library

_LANES = 8
_PANEL = 16
_SLACK_FLOATS = 40
"""A vector may be read, and a block of three written, past the end of a plane."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """A convolution without its numbers; each tuple has an entry a dimension, zeros are all that pads.

    Args:
        in_channels, out_channels, groups: of the layer.
        inner, outer: extents of input and output.
        kernel, stride, padding, dilation: as ``torch.nn.Conv2d`` takes them.
    """

    in_channels: int
    out_channels: int
    groups: int
    inner: tuple[int, ...]
    outer: tuple[int, ...]
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]

    @property
    def num_taps(self) -> int:
        """K."""
        return self.in_channels // self.groups * math.prod(self.kernel)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Of the layer's weight."""
        return (self.out_channels, self.in_channels // self.groups, *self.kernel)

    @property
    def num_positions(self) -> int:
        """Of the output."""
        return math.prod(self.outer)


class FilterKernels:
    """The compiled kernels for one geometry.

    Filters and biases come as F packed numbers an example, in an order of the kernels' own; norms and sums do not
    care, and :meth:`unpack` restores the usual one.

    Args:
        geometry: of the layer and its input.
        bias: the bias's gradient is wanted too.
    """

    def __init__(self, geometry: Geometry, *, bias: bool) -> None:
        loaded = library()
        assert loaded is not None
        self._library: ctypes.CDLL = loaded
        self._geometry = geometry
        self._bias = bias
        self._shape = _shape(geometry, bias=bias)
        per_group = geometry.out_channels // geometry.groups
        self._packed = (geometry.groups, -(-per_group // _PANEL), geometry.num_taps + bias, _PANEL)
        self.num_packed = math.prod(self._packed)
        self.gram_floats = 2 * self._shape.plane_floats**2

    def squares(self, inputs: Tensor, grads: Tensor) -> Tensor:
        """Squared norms (B,), of filters that are computed and forgotten.

        Args:
            inputs, grads: (B, I, *inner) and (B, O, *outer), contiguous float32.
        """
        return self._each(inputs, grads, None)

    def each(self, inputs: Tensor, grads: Tensor) -> tuple[Tensor, Tensor]:
        """Squared norms (B,) and the packed gradients (B, F)."""
        packed_BF = torch.empty(grads.shape[0], self.num_packed)
        return self._each(inputs, grads, packed_BF), packed_BF

    def gram(self, inputs: Tensor, grads: Tensor) -> tuple[Tensor, Tensor]:
        """Squared norms (B,) from Gram matrices, and what they would be if nothing cancelled; strides must be 1."""
        squares_B, bounds_B = torch.empty(grads.shape[0]), torch.empty(grads.shape[0])
        scratch = self._scratch(gram=True)
        self._library.lepton_convolution_gram(
            ctypes.byref(self._shape), grads.shape[0], inputs.data_ptr(), grads.data_ptr(),
            squares_B.data_ptr(), bounds_B.data_ptr(), scratch.data_ptr(),
        )  # fmt: skip
        return squares_B, bounds_B

    def sum(self, inputs: Tensor, grads: Tensor, factors_B: Tensor) -> Tensor:
        """Packed gradients (F,) of all examples, times their factors; one of factor 0 is not looked at."""
        packed_F, scratch = torch.zeros(self.num_packed), self._scratch(gram=False)
        self._library.lepton_convolution_sum(
            ctypes.byref(self._shape), grads.shape[0], inputs.data_ptr(), grads.data_ptr(),
            factors_B.data_ptr(), packed_F.data_ptr(), scratch.data_ptr(),
        )  # fmt: skip
        return packed_F

    def unpack(self, packed: Tensor) -> tuple[Tensor, Tensor | None]:
        """Filters (..., O, K) and biases (..., O) of packed gradients (..., F)."""
        geometry = self._geometry
        per_group = geometry.out_channels // geometry.groups
        parts = packed.unflatten(-1, self._packed).movedim(-2, -1).flatten(-3, -2)[..., :per_group, :]
        parts = parts.flatten(-3, -2)
        return parts[..., : geometry.num_taps], parts[..., -1] if self._bias else None

    def _each(self, inputs: Tensor, grads: Tensor, packed_BF: Tensor | None) -> Tensor:
        squares_B, scratch = torch.empty(grads.shape[0]), self._scratch(gram=False)
        self._library.lepton_convolution_each(
            ctypes.byref(self._shape), grads.shape[0], inputs.data_ptr(), grads.data_ptr(), squares_B.data_ptr(),
            None if packed_BF is None else packed_BF.data_ptr(), scratch.data_ptr(),
        )  # fmt: skip
        return squares_B

    def _scratch(self, *, gram: bool) -> Tensor:
        num_bytes = self._library.lepton_convolution_scratch(ctypes.byref(self._shape), gram)
        return torch.empty(num_bytes, dtype=torch.uint8)


def _shape(geometry: Geometry, *, bias: bool) -> Shape:
    """Where everything lies once it is laid out for the kernels."""
    inner, outer, padding = _three(geometry.inner), _three(geometry.outer), _three(geometry.padding, 0)
    plane = [size + 2 * pad for size, pad in zip(inner, padding, strict=True)]
    last = ((outer[0] - 1) * plane[1] + outer[1] - 1) * plane[2] + outer[2]
    return Shape(
        in_channels=geometry.in_channels, out_channels=geometry.out_channels, groups=geometry.groups,
        inner=tuple(inner), outer=tuple(outer), kernel=tuple(_three(geometry.kernel)),
        stride=tuple(_three(geometry.stride)), padding=tuple(padding), dilation=tuple(_three(geometry.dilation)),
        plane=tuple(plane), plane_floats=math.prod(plane) + _SLACK_FLOATS,
        grad_floats=-(-last // _LANES) * _LANES + 2 * _LANES, bias=bias,
    )  # fmt: skip


def _three(extents: tuple[int, ...], missing: int = 1) -> list[int]:
    return [*[missing] * (3 - len(extents)), *extents]
