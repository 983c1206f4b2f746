"""One chunk of an update: opened, stepped, journalled as the kernels can, closed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from leptonai.training.parameter_server.intent import UpdateLog
from leptonai.training.parameter_server.kernels import JournallingKernels, Kernels
from leptonai.training.parameter_server.memory import ShardMemory

Floats = NDArray[np.float32]


def step_chunk(
    log: UpdateLog,
    memory: ShardMemory,
    kernels: Kernels,
    source: Callable[[int, int], Floats],
    chunk: int,
    span: tuple[int, int],
    *,
    lr: float,
    step: int,
) -> None:
    """Step the elements of ``span`` that are not done; the chunk is to be closed then.

    Args:
        log: where it is noted.
        memory: what changes.
        kernels: of one rule.
        source: the gradient of a range none of which has changed.
        chunk: which it is.
        span: first and one-past-last element of it that the update concerns.
        lr: learning rate.
        step: number of the step.
    """
    first, stop = span
    begun = log.block_under_way(chunk, first)
    start = begun[0] if begun else first
    p, g, states = memory.parameters[start:stop], source(start, stop), memory.states[:, start:stop]
    if log.block_elements and isinstance(kernels, JournallingKernels):
        journal = log.open_blocks(chunk, start)
        kernels.update_journalled(p, g, states, lr=lr, step=step, journal=journal)
        return
    if begun is None:
        log.open_chunk(chunk, start, stop)
        kernels.update(p, g, states, lr=lr, step=step)
        return
    # A predecessor with other kernels had got as far as here: the journal's two slots must be used in turn.
    low, size = chunk * memory.shape.chunk_elements, log.block_elements
    while start < stop:
        end = min(low + ((start - low) // size + 1) * size, stop)
        log.open_block(chunk, start, end)
        kernels.update(
            memory.parameters[start:end], source(start, end), memory.states[:, start:end], lr=lr, step=step
        )
        start = end
