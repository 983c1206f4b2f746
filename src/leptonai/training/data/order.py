"""Which examples make up which step: a function of (seed, epoch, step) alone, never of the workers."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.training.data.draws import PURPOSE_ORDER, random_words


@dataclass(frozen=True, slots=True, eq=False)
class GlobalBatch:
    """The examples of one step, over all workers.

    Args:
        epoch: 0-based epoch the step belongs to.
        step_in_epoch: 0-based step within that epoch.
        indices: the examples in order; workers take consecutive shares of them.
    """

    epoch: int
    step_in_epoch: int
    indices: NDArray[np.int64]


def epoch_order(*, seed: int, epoch: int, num_examples: int) -> NDArray[np.int64]:
    """Every index below ``num_examples`` once, shuffled by (seed, epoch).

    Args:
        seed: of the job, >= 0.
        epoch: 0-based.
        num_examples: from 1 to 2**40.

    >>> sorted(epoch_order(seed=0, epoch=3, num_examples=4).tolist())
    [0, 1, 2, 3]
    """
    words = random_words(num_examples, seed=seed, purpose=PURPOSE_ORDER, epoch=epoch)
    # Each index rides in the low bits of its random word: sorting the words shuffles the indices, far faster
    # than an argsort, and equal words cannot leave the outcome to the sorting algorithm of one CPU.
    low_bits = np.uint64((1 << (num_examples - 1).bit_length()) - 1)
    words &= ~low_bits
    words |= np.arange(num_examples, dtype=np.uint64)
    words.sort()
    words &= low_bits
    return words.view(np.int64)


class Order:
    """The global batches of a whole run.

    The last batch of an epoch holds what is left, so that each epoch covers every example exactly once.

    Args:
        seed: of the job, >= 0.
        num_examples: in the training set, >= 1.
        global_batch_size: examples in one step over all workers, >= 1.
        shuffle: False for the order of the data in every epoch.

    Raises:
        InputError: a count lies outside its range.

    >>> order = Order(seed=0, num_examples=5, global_batch_size=2)
    >>> [(batch.epoch, len(batch.indices)) for batch in map(order.batch, range(4))]
    [(0, 2), (0, 2), (0, 1), (1, 2)]
    """

    def __init__(self, *, seed: int, num_examples: int, global_batch_size: int, shuffle: bool = True) -> None:
        for name, value in (("num_examples", num_examples), ("global_batch_size", global_batch_size)):
            if value < 1:
                raise InputError(f"Order: expected {name} >= 1, found {value}")
        self._seed, self._num_examples, self._batch_size = seed, num_examples, global_batch_size
        self._shuffle = shuffle
        self._cached: tuple[int, NDArray[np.int64]] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one pass over the examples."""
        return -(-self._num_examples // self._batch_size)

    def batch(self, step: int) -> GlobalBatch:
        """The examples of the 0-based ``step``."""
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        start = step_in_epoch * self._batch_size
        return GlobalBatch(epoch, step_in_epoch, self._epoch(epoch)[start : start + self._batch_size])

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        # One value holds epoch and order together, so a prefetching thread never sees half an update.
        cached = self._cached
        if cached is None or cached[0] != epoch:
            if self._shuffle:
                order = epoch_order(seed=self._seed, epoch=epoch, num_examples=self._num_examples)
            else:
                order = np.arange(self._num_examples, dtype=np.int64)
            order.flags.writeable = False
            self._cached = cached = (epoch, order)
        return cached[1]


def step_indices(
    *, seed: int, step: int, num_examples: int, global_batch_size: int
) -> tuple[int, NDArray[np.int64]]:
    """Epoch and examples of one step; use :class:`Order` for many, which keeps the epoch's order.

    >>> epoch, indices = step_indices(seed=0, step=3, num_examples=5, global_batch_size=2)
    >>> epoch, len(indices)
    (1, 2)
    """
    batch = Order(seed=seed, num_examples=num_examples, global_batch_size=global_batch_size).batch(step)
    return batch.epoch, batch.indices
