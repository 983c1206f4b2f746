"""How many of a step's examples go through the model at once: few at first, then more while that is faster.

A model's activations for a whole batch may not fit the caches, and memory is fetched anew for each; fewer examples at
a time give the same sum of gradients. Growing from below, a size that only costs memory is tried once, not twice.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from leptonai.core.errors import InputError

_TURNS = 3
"""Steps each size is timed for, after one that is not."""
_GAIN = 0.98
"""A larger size must take at most this part of the time of the smaller."""
_NEARLY_WHOLE = 0.75
"""Pieces larger than this part of a batch leave a second one that is too small: the next size is the whole."""


class PhysicalBatch:
    """Cuts steps into pieces of a size that it finds by timing.

    What it does depends on numbers of examples and on time, never on the examples.

    Args:
        smallest: the first size to try, >= 1; each next one is twice as large, the last the whole batch.
        fixed: take this size without timing; 0 for the whole batch.
        now: a clock in seconds.

    Attributes:
        size: the one found, None while steps are still being timed; 0 means the whole.

    Raises:
        InputError: a size is out of range.

    >>> with PhysicalBatch(fixed=64).step(150) as pieces:
    ...     [(piece.start, piece.stop) for piece in pieces]
    [(0, 64), (64, 128), (128, 150)]
    """

    def __init__(
        self, *, smallest: int = 64, fixed: int | None = None, now: Callable[[], float] = time.perf_counter
    ) -> None:
        if smallest < 1 or (fixed is not None and fixed < 0):
            raise InputError(f"PhysicalBatch: expected sizes >= 1, found {smallest} and {fixed}")
        self.size = fixed
        self._trial = smallest
        self._now = now
        self._seconds: list[float] = []
        self._best: tuple[float, int] | None = None
        self._largest_step = 0

    @contextmanager
    def step(self, num_examples: int) -> Iterator[tuple[slice, ...]]:
        """The pieces of a step, timed until the block ends; no examples, no pieces."""
        self._largest_step = max(self._largest_step, num_examples)
        size = self._trial if self.size is None else self.size
        stride = size or max(1, num_examples)
        began = self._now()
        yield tuple(
            slice(start, min(start + stride, num_examples)) for start in range(0, num_examples, stride)
        )
        if self.size is None and num_examples > 0:
            self._note((self._now() - began) / num_examples)

    def _note(self, seconds_per_example: float) -> None:
        self._seconds.append(seconds_per_example)
        if len(self._seconds) <= _TURNS:
            return
        found = (statistics.median(self._seconds[1:]), self._trial)
        self._seconds = []
        if self._best is not None and found[0] > _GAIN * self._best[0]:
            self.size = self._best[1]
            return
        self._best = found
        if self._trial == 0 or self._trial >= self._largest_step:
            self.size = 0
            return
        self._trial *= 2
        if self._trial > _NEARLY_WHOLE * self._largest_step:
            self._trial = 0
