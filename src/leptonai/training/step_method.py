"""Steps that are not ordinary ones: who chooses the examples, how the gradient is summed, who is asked first.

Private training is such a method; the loop and the learners know no more of it than this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from numpy.typing import NDArray

from leptonai.training.data.order import GlobalBatch
from leptonai.training.learner import Batch


class Sampler(Protocol):
    """Which examples make up which step."""

    def batch(self, step: int) -> GlobalBatch:
        """The examples of the 0-based ``step`` over all workers; maybe none."""
        ...


class GradientSum(Protocol):
    """One worker's part of a step's gradient.

    Attributes:
        values: numbers that steps change and checkpoints keep, such as a clipping norm; equal on all workers.
    """

    values: dict[str, float]

    def add(self, loss: Callable[[Any], Any], batch: Batch) -> None:
        """Take in the gradients of some examples (one or more).

        Args:
            loss: the mean loss of a batch, or of a part of it, computed through the model.
        """
        ...

    def part(self, *, leads: bool) -> NDArray[Any]:
        """What this worker brings to the sum over workers (contiguous float32, float64 or int64), and begin anew.

        Args:
            leads: true on exactly one worker, which brings what belongs in the sum once.
        """
        ...

    def gradient(self, summed: NDArray[Any]) -> Any:
        """The gradient to apply, from the sum of all parts: flat, float32, in the order of the trainable parameters."""
        ...


class StepMethod(Protocol):
    """How the steps of a run are taken."""

    @property
    def sampler(self) -> Sampler: ...

    @property
    def num_examples(self) -> int:
        """Training examples as reports and schedules count them; the true number may be a secret."""
        ...

    @property
    def examples_per_step(self) -> int:
        """A step's examples likewise."""
        ...

    def gradients(self, model: Any) -> GradientSum:
        """Get ready to sum gradients of this model's trainable parameters."""
        ...

    def charge(self, step: int) -> None:
        """Asked on worker 0 before anything of step number ``step`` (1-based) leaves it.

        Raises:
            Refused: it may not be taken.
        """
        ...
