"""Keeping norms honest: where a sum cancels so much that rounding could hide a large gradient, and NaN.

B is the number of examples.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

CANCELLED = 1e-3
"""Below this part of its bound, a norm from Gram matrices is computed again, from the gradient itself: the rounding
of a sum of products is relative to the products, and an underestimated norm would be clipped too little."""


def repaired(squares_B: Tensor, bounds_B: Tensor, exact: Callable[[Tensor], Tensor]) -> Tensor:
    """The squared norms, with those that cancelled most computed anew.

    Args:
        squares_B: from Gram matrices.
        bounds_B: what they would be if nothing cancelled.
        exact: squared norms of the examples of these numbers, from their gradients.
    """
    cancelled = torch.nonzero(squares_B < CANCELLED * bounds_B).flatten()
    if cancelled.numel() > 0:
        squares_B[cancelled] = exact(cancelled)
    return squares_B


def masked(factors_B: Tensor, *values: Tensor) -> tuple[Tensor, ...]:
    """The values with the rows of factor 0 set to 0, so that NaN and infinity there come to nothing."""
    out_B = factors_B == 0
    if not bool(out_B.any()):
        return values
    return tuple(value.masked_fill(out_B.view(-1, *[1] * (value.dim() - 1)), 0.0) for value in values)


def squares_of(gradients: tuple[Tensor, ...]) -> Tensor:
    """(B,) squared norms of per-example gradients, (B, ...) each."""
    norms = [torch.linalg.vector_norm(each.flatten(1), dim=1) for each in gradients]
    return torch.stack(norms).square_().sum(0)
