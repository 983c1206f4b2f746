"""Norms and weighted sums of a linear layer's per-example gradients, computed in several ways.

B examples, T positions of an example, N = B * T, I input features, O output features.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from leptonai.security.privacy.pytorch.compiled.library import library
from leptonai.security.privacy.pytorch.rounding import repaired, squares_of

Way = Callable[..., Tensor]
"""Takes inputs (B, T, I), grads (B, T, O) and ``bias``; gives squared norms (B,)."""

_CACHED_FLOATS = 1 << 18
"""Numbers of one piece of work that should stay in the second-level cache."""
_GRAM_POSITIONS = 1024
"""Two matrices of this many rows and columns take 8 MiB, and more positions favour the gradients."""
_SCALED_FLOATS = 1 << 21
"""Scaled numbers held at once: enough for a fast product, few beside a model's activations."""


def ways(inputs_BTI: Tensor, grads_BTO: Tensor) -> dict[str, Way]:
    """The ways that can be taken with these tensors, by name."""
    found: dict[str, Way] = {"gradients": from_gradients, "gram": from_gram}
    on_cpu = inputs_BTI.device.type == "cpu" and inputs_BTI.dtype == grads_BTO.dtype == torch.float32
    if on_cpu and inputs_BTI.shape[1] <= _GRAM_POSITIONS and library() is not None:
        found["compiled gram"] = from_compiled_gram
    return found


def from_gradients(inputs_BTI: Tensor, grads_BTO: Tensor, *, bias: bool) -> Tensor:
    """Squared norms of gradients that are computed a few examples at a time, and forgotten."""
    size = max(1, _CACHED_FLOATS // (inputs_BTI.shape[2] * grads_BTO.shape[2]))
    pieces = [
        squares_of((grads.transpose(1, 2) @ inputs, *((grads.sum(1),) if bias else ())))
        for inputs, grads in zip(inputs_BTI.split(size), grads_BTO.split(size), strict=True)
    ]
    return torch.cat(pieces)


def from_gram(inputs_BTI: Tensor, grads_BTO: Tensor, *, bias: bool) -> Tensor:
    """The sum over positions s, t of <input_s, input_t> * <grad_s, grad_t>."""
    size = max(1, _CACHED_FLOATS // inputs_BTI.shape[1] ** 2)
    squares, bounds = [], []
    for inputs, grads in zip(inputs_BTI.split(size), grads_BTO.split(size), strict=True):
        products_BTT = inputs @ inputs.transpose(1, 2)
        if bias:
            products_BTT += 1.0
        products_BTT *= grads @ grads.transpose(1, 2)
        squares.append(products_BTT.sum((1, 2)))
        bounds.append(products_BTT.diagonal(dim1=1, dim2=2).abs().sqrt().sum(1).square())
    return _repaired(inputs_BTI, grads_BTO, torch.cat(squares), torch.cat(bounds), bias)


def from_compiled_gram(inputs_BTI: Tensor, grads_BTO: Tensor, *, bias: bool) -> Tensor:
    """The same without storing a matrix, one half of it computed."""
    loaded = library()
    assert loaded is not None
    inputs, grads = inputs_BTI.contiguous(), grads_BTO.contiguous()
    num_examples, positions, features = inputs.shape
    squares_B, bounds_B = torch.empty(num_examples), torch.empty(num_examples)
    num_bytes = loaded.lepton_sequence_scratch(positions, features, grads.shape[2])
    scratch = torch.empty(num_bytes, dtype=torch.uint8)
    loaded.lepton_sequence_gram(
        num_examples, positions, features, grads.shape[2], float(bias), inputs.data_ptr(), grads.data_ptr(),
        squares_B.data_ptr(), bounds_B.data_ptr(), scratch.data_ptr(),
    )  # fmt: skip
    return _repaired(inputs, grads, squares_B, bounds_B, bias)


def _repaired(inputs: Tensor, grads: Tensor, squares_B: Tensor, bounds_B: Tensor, bias: bool) -> Tensor:
    def exact(which: Tensor) -> Tensor:
        return from_gradients(inputs[which], grads[which], bias=bias)

    return repaired(squares_B, bounds_B, exact)


def add_weighted(
    inputs_BTI: Tensor, grads_BTO: Tensor, factors_B: Tensor, weight_OI: Tensor | None, bias_O: Tensor | None
) -> None:
    """Add the examples' gradients times their factors to ``weight_OI`` and ``bias_O``."""
    scale_inputs = inputs_BTI.shape[2] < grads_BTO.shape[2]
    smaller = inputs_BTI if scale_inputs else grads_BTO
    size = max(1, _SCALED_FLOATS // smaller[0].numel())
    for inputs, grads, factors in zip(
        inputs_BTI.split(size), grads_BTO.split(size), factors_B.split(size), strict=True
    ):
        factors_N = factors.repeat_interleave(inputs.shape[1]) if inputs.shape[1] > 1 else factors
        inputs_NI, grads_NO = inputs.flatten(0, 1), grads.flatten(0, 1)
        if bias_O is not None:
            bias_O.addmv_(grads_NO.t(), factors_N)
        if weight_OI is None:
            continue
        if scale_inputs:
            weight_OI.addmm_(grads_NO.t(), inputs_NI * factors_N[:, None])
        else:
            weight_OI.addmm_((grads_NO * factors_N[:, None]).t(), inputs_NI)
