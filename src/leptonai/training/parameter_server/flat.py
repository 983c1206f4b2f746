"""What the parameter server asks of a framework's learner, and how a model's tensors lie in shards."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from leptonai.training.learner import Batch, LearnerState


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorSpec:
    """One trainable tensor: its name in checkpoints (without ``model/``), shape, and type (F32 or BF16)."""

    name: str
    shape: tuple[int, ...]
    dtype: str = "F32"

    @property
    def num_elements(self) -> int:
        """Numbers in it."""
        return int(np.prod(self.shape, dtype=np.int64))


class FlatLearner(Protocol):
    """One worker's model, whose trainable parameters live in memory the parameter server gives it.

    The optimiser is the server's in the gradient family of modes; in the local family :meth:`local_step` uses
    the job's own.
    """

    @property
    def tensors(self) -> Sequence[TensorSpec]:
        """The trainable parameters, in a fixed order equal on all workers.

        Raises InputError for a model without any.
        """
        ...

    def initial(self) -> Sequence[NDArray[np.float32]]:
        """Their values after seeding, one flat float32 array a tensor; equal on all workers."""
        ...

    def bind(
        self, parameters: Sequence[NDArray[np.float32]], gradients: Sequence[NDArray[np.float32]]
    ) -> None:
        """Take flat float32 arrays, one a tensor, as the model's parameters and as the place for gradients.

        The arrays stay the same for the whole run; the values in ``parameters`` change between calls (the
        learner never writes there, except in :meth:`local_step`). PyTorch models use them in place; Keras
        variables are copied in by :meth:`refresh` and out by :meth:`local_step`.
        """
        ...

    def refresh(self) -> None:
        """The values in ``parameters`` have changed."""
        ...

    def gradient(self, batch: Batch, *, num_examples: int, seed: int) -> float:
        """Write the gradient of (summed loss over the batch) / ``num_examples`` into ``gradients``.

        Overwrites all of them, with zeros where the loss does not reach. An empty batch gives zeros.

        Args:
            batch: this worker's piece.
            num_examples: the denominator, > 0: that of the whole step.
            seed: for dropout and the like.

        Returns:
            The sum of the loss over the batch's examples.

        Raises:
            Fault: the loss is not finite.
        """
        ...

    def local_step(self, batch: Batch, *, lr_factor: float, seed: int) -> float:
        """One step of the job's own optimiser on the mean loss of ``batch``, in place in ``parameters``.

        Returns the sum of the loss. Raises Fault when the loss is not finite.
        """
        ...

    def evaluate(self, batches: Iterable[Batch]) -> Mapping[str, float]:
        """Sums over all examples of each metric and of ``loss``, from the current ``parameters``."""
        ...

    def state(self) -> LearnerState:
        """Model tensors under ``model/...`` (parameters and this worker's buffers); in the local family the
        optimiser's under ``optimizer/...`` too."""
        ...

    def restore(self, state: LearnerState) -> None:
        """Take over buffers (and the local optimiser's state, if it is there) and write the parameters into
        ``parameters`` if bound. Raises InputError when names or shapes do not fit."""
        ...
