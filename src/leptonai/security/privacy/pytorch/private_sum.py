"""A worker's part of a private gradient of a PyTorch model: clipped examples, and on one worker the noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from leptonai.security.privacy.noisy import NoisySum
from leptonai.security.privacy.plan import PrivatePlan
from leptonai.security.privacy.pytorch.clipper import Clipper
from leptonai.security.privacy.pytorch.physical import PhysicalBatch


class PrivateSum:
    """Satisfies :class:`leptonai.training.step_method.GradientSum`.

    Args:
        model: its trainable parameters' gradients are summed.
        plan: how they are clipped, and how much noise there is.
        key: 32 bytes that the noise follows from, for tests and audits; None: nobody can repeat it.

    Attributes:
        values: ``clip``, the norm that gradients are cut to; moves only if it is adaptive.
    """

    def __init__(self, model: nn.Module, plan: PrivatePlan, *, key: bytes | None = None) -> None:
        per_layer = plan.clipping == "per_layer"
        self._exact = plan.precision == "exact"
        self._clipper = Clipper(
            model, clip=plan.clip, clipping="per_layer" if per_layer else "flat", exact=self._exact
        )
        # Exactly: one by one, as an example's gradient may be rounded otherwise in a batch of another size.
        self._physical = PhysicalBatch(fixed=1 if self._exact else None)
        self._noisy = NoisySum(plan, key)
        self.values = self._noisy.values
        self._num_examples, self._stale = 0, True

    @property
    def unit(self) -> float:
        """What 1 in a part stands for: 1, or the grid of an exact sum."""
        return self._clipper.exact.grid if self._exact else 1.0

    @property
    def sensitivity_grid(self) -> int:
        """The most that one example changes an exact sum, in grid units."""
        return self._clipper.exact.sensitivity_grid

    def add(self, loss: Callable[[Any], Tensor], batch: tuple[NDArray[Any], ...]) -> None:
        self._begin()
        with self._physical.step(len(batch[0])) as pieces:
            for piece in pieces:
                some = tuple(column[piece] for column in batch)
                self._clipper.add(lambda some=some: loss(some), len(some[0]))  # type: ignore[misc]
        self._num_examples += len(batch[0])

    def _begin(self) -> None:
        if self._stale:  # not before: the last sum may still be in use as the gradient
            self._clipper.zero()
            self._clipper.clip = self.values["clip"]
            self._num_examples, self._stale = 0, False

    def part(self, *, leads: bool) -> NDArray[Any]:
        self._begin()  # an empty step is a step like any other
        self._stale = True
        if self._exact:
            total = self._clipper.exact
            return self._noisy.exact_part(total.sum_P.numpy(), total.sensitivity_grid, leads=leads)
        return self._noisy.part(
            self._clipper.sum_P.numpy(), leads=leads,
            num_examples=self._num_examples, num_within=self._clipper.num_within,
        )  # fmt: skip

    def gradient(self, summed: NDArray[Any]) -> Tensor:
        if self._exact:
            summed = (summed * self.unit).astype("float32")
        return torch.from_numpy(self._noisy.gradient(summed))
