"""Sums of clipped gradients in whole numbers, so that the sensitivity is a fact and not a hope about rounding.

Each example's clipped gradient is rounded to a grid; whether the rounded one is short enough is decided in exact
arithmetic; one that is not adds nothing. With integer noise on the same grid no floating-point operation lies
between the data and the release.

One thing stays outside: PyTorch may compute an example's gradient with other roundings in a batch of another size.
Whoever needs that excluded too adds the examples one by one, ``num_examples=1``.
Legend: B examples, P trainable parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from leptonai.core.errors import InputError
from leptonai.security.privacy.pytorch.tape import Record
from leptonai.security.privacy.pytorch.tapping import weighted_sum

if TYPE_CHECKING:
    from leptonai.security.privacy.pytorch.clipper import Slot

_FINENESS = 1000
"""The clip in units of sqrt(P) grid steps, at least: rounding then adds at most 0.05 % to a norm."""


class ExactSum:
    """An integer sum of clipped gradients.

    Args:
        layout: where each trainable parameter lies in the flat sum.
        clip: L2 norm the gradients were cut to, > 0.

    Attributes:
        grid: the value of 1 in ``sum_P``: clip / 2**k, exactly.
        sensitivity_grid: the most one example changes ``sum_P``, as an L2 norm; a whole number, at most 0.1 % more
            than the clip.
        sum_P: int64.
        num_dropped: examples since :meth:`zero` that would have exceeded it and added nothing. Private data.

    Raises:
        InputError: ``clip`` is out of range.

    >>> from types import SimpleNamespace
    >>> total = ExactSum([SimpleNamespace(parameter=None, place=slice(0, 100))], clip=1.0)
    >>> total.sensitivity_grid, 1 / total.grid
    (16390, 16384.0)
    """

    def __init__(self, layout: Sequence[Slot], *, clip: float) -> None:
        self._places = {id(slot.parameter): slot.place for slot in layout}
        self._num_parameters = max(place.stop for place in self._places.values())
        self.sum_P = torch.zeros(self._num_parameters, dtype=torch.int64)
        self.num_dropped = 0
        self._set_clip(clip)

    def _set_clip(self, clip: float) -> None:
        if not (math.isfinite(clip) and clip > 0):
            raise InputError(f"clip: expected a number > 0, found {clip!r}")
        steps = 1 << math.ceil(math.log2(_FINENESS * math.sqrt(self._num_parameters)))
        self.grid = clip / steps
        # Rounding to the nearest point moves each coordinate by half a step, a vector by sqrt(P) / 2.
        self.sensitivity_grid = steps + math.isqrt(self._num_parameters) // 2 + 1

    def zero(self, clip: float | None = None) -> None:
        """Forget all examples; from now on with another clip, if one is given."""
        if clip is not None:
            self._set_clip(clip)
        self.sum_P.zero_()
        self.num_dropped = 0

    def add(self, records: Sequence[Record], factors: Sequence[Tensor], num_examples: int) -> None:
        """Add the gradients of a pass.

        Args:
            records: of the pass.
            factors: (B,) for each record, what its gradients are scaled by; equal for records of one parameter.
            num_examples: B. Memory is B times the parameters' size in float64: add large batches in pieces.

        Raises:
            InputError: a record covers a parameter that is not in the layout.
        """
        rounded = self._rounded(records, factors)
        squares_B = torch.zeros(num_examples, dtype=torch.float64)
        for grid_Bn in rounded.values():
            squares_B += torch.einsum("bn,bn->b", grid_Bn, grid_Bn)
        # Sums of squares of whole numbers are exact in float64 below 2**53; beyond, and for NaN, this is false.
        kept_B = squares_B <= float(self.sensitivity_grid**2)
        self.num_dropped += num_examples - int(kept_B.sum())
        for parameter, grid_Bn in rounded.items():
            self.sum_P[self._places[parameter]] += weighted_sum(kept_B.double(), grid_Bn).to(torch.int64)

    def _rounded(self, records: Sequence[Record], factors: Sequence[Tensor]) -> dict[int, Tensor]:
        """The examples' scaled gradients in whole grid steps, (B, n) float64, by parameter."""
        sums: dict[int, Tensor] = {}
        scales: dict[int, Tensor] = {}
        for record, factors_B in zip(records, factors, strict=True):
            if any(id(each) not in self._places for each in record.parameters):
                raise InputError("a record covers a parameter that is not in the layout")
            for parameter, grads in zip(record.parameters, record.per_example(), strict=True):
                key, flat = id(parameter), grads.flatten(1)
                sums[key] = sums[key] + flat if key in sums else flat
                scales[key] = factors_B
        rounded = {}
        for key, flat in sums.items():
            scaled = (flat.double() * (scales[key].double() / self.grid)[:, None]).round_()
            rounded[key] = scaled.masked_fill_((scales[key] == 0)[:, None], 0.0)
        return rounded

    def values_P(self) -> Tensor:
        """(P,) float64: the sum in the gradients' unit."""
        return self.sum_P.double() * self.grid
