"""What the training loop asks of a framework and of the link between workers.

The loop decides which examples, when to evaluate, save and stop; a :class:`Learner` (one for
PyTorch, one for TensorFlow) does the arithmetic; an :class:`Exchange` sums numbers over workers.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from leptonai.training.stopwatch import Stopwatch

Batch = tuple[NDArray[Any], ...]
"""Arrays with equal first dimension: inputs first, labels last."""


@dataclass(frozen=True, slots=True)
class RawTensor:
    """A tensor as bytes, in any framework's type: ``dtype`` in safetensors' short names (F32, BF16, I64...)."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview


@dataclass(frozen=True, slots=True, kw_only=True)
class LearnerState:
    """All that a learner needs to go on exactly where it was."""

    tensors: Mapping[str, RawTensor]
    """Model tensors under ``model/...``, the optimiser's under ``optimizer/...``."""
    values: Mapping[str, Any]
    """JSON-ready values beside them."""


class Learner(Protocol):
    """One worker's model and optimiser."""

    @property
    def stopwatch(self) -> Stopwatch:
        """Where the time of steps goes; the loop adds what it does itself, and empties it with each report."""
        ...

    @property
    def base_learning_rate(self) -> float:
        """The optimiser's learning rate before scheduling, for reports."""
        ...

    @property
    def exchanged_bytes(self) -> int:
        """What this worker hands to the exchange in one step, 0 for a single worker."""
        ...

    @property
    def gradient_norm(self) -> float | None:
        """L2 norm of the gradient of the last step, before clipping, over all parameters; None: it is not known here.

        A pass over the gradient, so it is asked for once a report.
        """
        ...

    @property
    def train_metric_sums(self) -> dict[str, float]:
        """Sums of metrics over this worker's training examples since the loop last set them to 0; may be empty."""
        ...

    def step(
        self, micro_batches: Sequence[Batch], *, num_examples: int, lr_factor: float, seed: int
    ) -> float:
        """Take one optimiser step on this worker's share of a global batch.

        Args:
            micro_batches: this worker's examples, cut for gradient accumulation; may be empty when the
                global batch has fewer examples than there are workers, and must still take part.
            num_examples: examples in the *global* batch (> 0). The gradient applied is that of the mean
                loss over all of them, whatever each worker's share.
            lr_factor: the schedule's factor on the optimiser's own learning rate.
            seed: for dropout and the like; differs by step and rank.

        Returns:
            The *sum* of the loss over this worker's examples (mean over a micro-batch times its size).

        Raises:
            Fault: the loss is not finite; nothing was exchanged or applied.
        """
        ...

    def evaluate(self, batches: Iterable[Batch]) -> Mapping[str, float]:
        """Sums over all examples of the batches, of each metric and of ``loss``.

        Every worker calls it once per evaluation, with its share of the evaluation set (maybe no batch at
        all), so it may first bring per-worker buffers in line with rank 0's. The result has the same keys
        on every worker; the loop sums over workers and divides by the number of examples.
        """
        ...

    def state(self) -> LearnerState:
        """A snapshot, equal on every worker but for per-worker buffers (then rank 0's counts).

        Raises:
            Fault: a trained weight is not finite; such a state is not worth keeping.
        """
        ...

    def restore(self, state: LearnerState) -> None:
        """Take over a snapshot. Raises InputError when names or shapes do not fit."""
        ...


class Exchange(Protocol):
    """The link between workers."""

    @property
    def rank(self) -> int: ...

    @property
    def num_workers(self) -> int: ...

    def sum(self, values: NDArray[Any]) -> None:
        """Replace ``values`` (contiguous float32/float64/int64) by its sum over all workers, in place."""
        ...

    def broadcast(self, values: NDArray[Any]) -> None:
        """Replace ``values`` on every worker by rank 0's, in place."""
        ...


class Alone:
    """The exchange of a single worker: nothing to do."""

    rank = 0
    num_workers = 1

    def sum(self, values: NDArray[Any]) -> None:
        return

    def broadcast(self, values: NDArray[Any]) -> None:
        return


class Announced:
    """An exchange that says, before each use, that this worker now waits for the others."""

    def __init__(self, exchange: Exchange, announce: Callable[[], None]) -> None:
        self._exchange, self._announce = exchange, announce

    @property
    def rank(self) -> int:
        return self._exchange.rank

    @property
    def num_workers(self) -> int:
        return self._exchange.num_workers

    def sum(self, values: NDArray[Any]) -> None:
        self._announce()
        self._exchange.sum(values)

    def broadcast(self, values: NDArray[Any]) -> None:
        self._announce()
        self._exchange.broadcast(values)


def shares(num_examples: int, num_workers: int) -> list[slice]:
    """Cut ``num_examples`` consecutive examples into one contiguous share a worker, sizes differing by at most 1.

    >>> shares(5, 2)
    [slice(0, 3, None), slice(3, 5, None)]
    """
    base, extra = divmod(num_examples, num_workers)
    starts = np.cumsum([0] + [base + (rank < extra) for rank in range(num_workers)]).tolist()
    return [slice(start, stop) for start, stop in itertools.pairwise(starts)]
