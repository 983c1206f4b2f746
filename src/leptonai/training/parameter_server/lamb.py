"""LAMB on a flat shard: Adam's direction, scaled tensor by tensor to the size of the weights.

A tensor's scale needs its norms before the step, while the step goes chunk by chunk. So the scale is found
when the first chunk of the tensor is reached (nothing of the tensor has changed then), and carried over to the
tensor's later chunks in two words of the shard's header, used in turn: a server that takes over in the middle
finds the one that its chunk needs.

A tensor that is cut over shards is scaled part by part.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.training.optimizers import Lamb
from leptonai.training.parameter_server.memory import ShardMemory
from leptonai.training.parameter_server.numpy_kernels import moments

CARRIED_SCALE = 24
"""Header: float64 scale of the tensor that goes on into chunk ``c``, at this word plus ``c`` modulo 2."""

_BLOCK_ELEMENTS = 1 << 13

Floats = NDArray[np.float32]
Source = Callable[[int, int], Floats]
"""The gradient of elements ``start`` to ``stop``; valid until asked again."""


class LambRule:
    """LAMB over the tensors of one shard.

    Args:
        memory: the shard's.
        optimizer: the settings.
        ranges: first and one-past-last element of each tensor, ascending.

    Raises:
        InputError: no ranges were given.
    """

    name = "numpy"

    def __init__(self, memory: ShardMemory, optimizer: Lamb, ranges: Sequence[tuple[int, int]]) -> None:
        if not ranges:
            raise InputError("LAMB scales tensor by tensor: it needs to know where each lies in the shard")
        self._memory, self._optimizer = memory, optimizer
        self._ranges = tuple(ranges)
        self._starts = [start for start, _ in ranges]
        self._block = min(_BLOCK_ELEMENTS, memory.shape.chunk_elements)
        self._scratch = np.empty((4, self._block), np.float32)

    def update(
        self, chunk: int, start: int, stop: int, source: Source, *,
        whole: tuple[int, int], lr: float, step: int,
    ) -> None:  # fmt: skip
        """Take step number ``step`` on elements ``start`` to ``stop`` of ``chunk``.

        Args:
            whole: range of the whole update, which this chunk is a part of.
        """
        index = max(0, bisect_right(self._starts, start) - 1)
        for first, last in self._ranges[index:]:
            if first >= stop:
                break
            low, high = max(first, start), min(last, stop)
            if low >= high:
                continue
            if low > max(first, whole[0]):
                scale = self._memory.header_float(CARRIED_SCALE + chunk % 2)
            else:
                scale = self._scale(low, min(last, whole[1]), source, step)
            self._move(low, high, source, step, lr * scale)
            if min(last, whole[1]) > stop:
                self._memory.set_header_float(CARRIED_SCALE + (chunk + 1) % 2, scale)

    def _scale(self, start: int, stop: int, source: Source, step: int) -> float:
        """Norm of the weights over norm of the direction, 1 where one of them is 0; changes nothing."""
        weights = directions = 0.0
        for low in range(start, stop, self._block):
            high = min(low + self._block, stop)
            states = self._scratch[2:, : high - low]
            states[:] = self._memory.states[:, low:high]
            direction = self._direction(low, high, states, source(low, high), step)
            directions += _squares(direction, states[0])
            weights += _squares(self._memory.parameters[low:high], states[0])
        return math.sqrt(weights / directions) if weights > 0.0 and directions > 0.0 else 1.0

    def _move(self, start: int, stop: int, source: Source, step: int, rate: float) -> None:
        for low in range(start, stop, self._block):
            high = min(low + self._block, stop)
            parameters, states = self._memory.parameters[low:high], self._memory.states[:, low:high]
            direction = self._direction(low, high, states, source(low, high), step)
            np.multiply(direction, np.float32(rate), out=direction)
            np.subtract(parameters, direction, out=parameters)

    def _direction(self, start: int, stop: int, states: Floats, gradient: Floats, step: int) -> Floats:
        """Moves ``states`` and returns Adam's corrected direction plus the decay, in scratch."""
        one: Floats = self._scratch[0, : stop - start]
        two = self._scratch[1, : stop - start]
        optimizer = self._optimizer
        moments(gradient, states, optimizer.betas, one)
        np.sqrt(states[1], out=one)
        np.divide(one, np.float32(math.sqrt(1.0 - optimizer.betas[1] ** step)), out=one)
        np.add(one, np.float32(optimizer.eps), out=one)
        np.divide(states[0], one, out=one)
        np.multiply(one, np.float32(1.0 / (1.0 - optimizer.betas[0] ** step)), out=one)
        np.multiply(self._memory.parameters[start:stop], np.float32(optimizer.weight_decay), out=two)
        np.add(one, two, out=one)
        return one


def _squares(values: Floats, scratch: Floats) -> float:
    return float(np.add.reduce(np.multiply(values, values, out=scratch), dtype=np.float64))
