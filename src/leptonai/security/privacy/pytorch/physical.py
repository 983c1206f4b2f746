"""How many of a step's examples go through the model at once: more steps at first, then the fastest that was seen.

A model's activations for a whole batch may not fit the caches, and memory is fetched anew for each; fewer examples at
a time give the same sum of gradients.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from leptonai.core.errors import InputError

_TURNS = 3
"""Steps each size is timed for, after one that is not."""


class PhysicalBatch:
    """Cuts steps into pieces of a size that it finds by timing.

    What it does depends on numbers of examples and on time, never on the examples.

    Args:
        sizes: to try beside the whole; one alone is taken without timing.
        whole: also try the whole batch.
        now: a clock in seconds.

    Attributes:
        size: the one found, None while steps are still being timed; 0 means the whole.

    Raises:
        InputError: a size is below 1, or there is none.

    >>> with PhysicalBatch(sizes=(64,), whole=False).step(150) as pieces:
    ...     [(piece.start, piece.stop) for piece in pieces]
    [(0, 64), (64, 128), (128, 150)]
    """

    def __init__(
        self,
        *,
        sizes: tuple[int, ...] = (64, 128),
        whole: bool = True,
        now: Callable[[], float] = time.perf_counter,
    ) -> None:
        candidates = (*((0,) if whole else ()), *sizes)
        if not candidates or any(size < 1 for size in sizes):
            raise InputError(f"PhysicalBatch: expected sizes >= 1, found {sizes}")
        self._seconds: dict[int, list[float]] = {size: [] for size in candidates}
        self._now = now
        self.size: int | None = candidates[0] if len(candidates) == 1 else None

    @contextmanager
    def step(self, num_examples: int) -> Iterator[tuple[slice, ...]]:
        """The pieces of a step, timed until the block ends; no examples, no pieces."""
        size = self._next() if self.size is None else self.size
        stride = size or max(1, num_examples)
        began = self._now()
        yield tuple(
            slice(start, min(start + stride, num_examples)) for start in range(0, num_examples, stride)
        )
        if self.size is None and num_examples > 0:
            self._note(size, (self._now() - began) / num_examples)

    def _next(self) -> int:
        return min(self._seconds, key=lambda size: len(self._seconds[size]))

    def _note(self, size: int, seconds: float) -> None:
        self._seconds[size].append(seconds)
        if all(len(found) > _TURNS for found in self._seconds.values()):
            self.size = min(self._seconds, key=lambda each: statistics.median(self._seconds[each][1:]))
