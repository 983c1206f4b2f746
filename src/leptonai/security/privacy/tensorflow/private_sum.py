"""A worker's part of a private gradient of a Keras model: clipped examples, and on one worker the noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.security.privacy.noisy import NoisySum
from leptonai.security.privacy.plan import PrivatePlan
from leptonai.security.privacy.tensorflow.clipping import KerasClipper


class KerasPrivateSum:
    """Satisfies :class:`leptonai.training.step_method.GradientSum`; see the PyTorch ``PrivateSum``."""

    def __init__(self, model: Any, plan: PrivatePlan, *, key: bytes | None = None) -> None:
        if plan.precision == "exact":
            raise InputError("Privacy: exact sums are for PyTorch models", hint="leave precision out")
        per_layer = plan.clipping == "per_layer"
        self._clipper = KerasClipper(model.trainable_variables, clipping="per_layer" if per_layer else "flat")
        self._noisy = NoisySum(plan, key)
        self.values = self._noisy.values
        self._num_examples, self._stale = 0, True

    def add(self, loss: Callable[[Any], Any], batch: tuple[NDArray[Any], ...]) -> None:
        self._begin()
        self._clipper.add(loss, batch, self.values["clip"])
        self._num_examples += len(batch[0])

    def _begin(self) -> None:
        if self._stale:
            self._clipper.zero()
            self._num_examples, self._stale = 0, False

    def part(self, *, leads: bool) -> NDArray[Any]:
        self._begin()
        self._stale = True
        return self._noisy.part(
            self._clipper.sum_P, leads=leads,
            num_examples=self._num_examples, num_within=self._clipper.num_within,
        )  # fmt: skip

    def gradient(self, summed: NDArray[Any]) -> NDArray[Any]:
        return self._noisy.gradient(summed)
