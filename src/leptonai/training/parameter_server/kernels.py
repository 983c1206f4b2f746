"""One optimiser step on flat float32 slices, in place: what a kernel is, and which is used.

A kernel gives the same bits for the same numbers, however the range is cut, as long as the cuts are at
multiples of 16 elements: chunks are updated, and after a crash redone, one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, assert_never, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from leptonai.training.optimizers import SGD, Adagrad, Adam, AdamW, Lamb, Optimizer

# Large enough to hide the call, small enough that what fails is found early.
_CHECK_ELEMENTS = 1 << 18


class Kernels(Protocol):
    """The update rule of one optimiser.

    Attributes:
        name: which implementation, for records: two of them agree closely, but not to the last bit.
    """

    name: str

    def update(
        self,
        parameters: NDArray[np.float32],
        gradient: NDArray[np.float32],
        states: NDArray[np.float32],
        *,
        lr: float,
        step: int,
    ) -> None:
        """Take step number ``step`` (1, 2, ...) in place.

        Args:
            parameters: (N,), N a multiple of 16.
            gradient: (N,), left as it is.
            states: (:func:`num_states`, N).
            lr: learning rate of this step.
        """
        ...


@dataclass(frozen=True, slots=True)
class BlockJournal:
    """Where old values go while a chunk changes block by block, and where it is noted.

    Args:
        slots: two of (1 + states, block_elements) each, flat; block number i of the chunk goes to slot ``i % 2``.
        marker: one 64-bit word; ``tag + ((i + 1) << 32)`` once block i is in its slot whole, and not before.
        tag: below 2**32.
        first: where in its chunk the range begins.
        block_elements: a multiple of 16.
    """

    slots: NDArray[np.float32]
    marker: NDArray[np.uint64]
    tag: int
    first: int
    block_elements: int


@runtime_checkable
class JournallingKernels(Kernels, Protocol):
    """Kernels that copy old values aside themselves, in the same pass."""

    def update_journalled(
        self,
        parameters: NDArray[np.float32],
        gradient: NDArray[np.float32],
        states: NDArray[np.float32],
        *,
        lr: float,
        step: int,
        journal: BlockJournal | None,
    ) -> None:
        """As ``update``; before a block changes it is in ``journal``."""
        ...


def state_names(optimizer: Optimizer) -> tuple[str, ...]:
    """What the rows of the states are, for checkpoints.

    >>> state_names(Adam())
    ('first', 'second')
    """
    match optimizer:
        case SGD():
            return ("momentum",) if optimizer.momentum else ()
        case Adam() | AdamW() | Lamb():
            return ("first", "second")
        case Adagrad():
            return ("sum",)
        case _:
            assert_never(optimizer)


def num_states(optimizer: Optimizer) -> int:
    """Arrays as long as the parameters that the optimiser keeps."""
    return len(state_names(optimizer))


def initialise_states(optimizer: Optimizer, states: NDArray[np.float32]) -> None:
    """Fill fresh states with what they begin at."""
    states[:] = optimizer.initial_accumulator if isinstance(optimizer, Adagrad) else 0.0


def choose_kernels(optimizer: Optimizer) -> Kernels:
    """The compiled kernels, else PyTorch's fused ones, where they agree with plain formulas; else blocked NumPy.

    Either may be missing or wrong (a compiler is needed; PyTorch's are private), so each process asks first.
    """
    from leptonai.training.parameter_server.compiled_kernels import CompiledKernels
    from leptonai.training.parameter_server.numpy_kernels import NumpyKernels

    assert not isinstance(optimizer, Lamb), "LAMB needs whole tensors: see lamb.py"
    plain = NumpyKernels(optimizer)
    try:
        compiled = CompiledKernels(optimizer)
        if agree(compiled, plain, num_states(optimizer)):
            return compiled
    except RuntimeError:  # not there
        pass
    try:
        from leptonai.training.parameter_server.torch_kernels import TorchKernels

        fused = TorchKernels(optimizer)
        return fused if agree(fused, plain, num_states(optimizer)) else plain
    except (ImportError, AttributeError, TypeError, RuntimeError):  # not there, or called otherwise
        return plain


def agree(first: Kernels, second: Kernels, states: int) -> bool:
    """Whether two kernels give the same numbers, but for rounding, over a few steps from one start."""
    rng = np.random.default_rng(0)
    start = rng.standard_normal(64).astype(np.float32)
    ends = []
    for kernels in (first, second):
        parameters, rows = start.copy(), np.zeros((states, 64), np.float32)
        for step in (1, 2, 3):
            kernels.update(parameters, np.cos(start * step), rows, lr=0.01 * step, step=step)
        ends.append(np.concatenate([parameters[None], rows]))
    return bool(np.allclose(ends[0], ends[1], rtol=1e-4, atol=1e-6))


def all_finite(values: NDArray[np.float32]) -> bool:
    """Whether no number is infinite or NaN, at the speed of reading once.

    A sum of squares is finite only if every number is; only where it is not are the numbers looked at.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        # From the end, so that what is read last, and is in the cache, is what an update begins with.
        for start in reversed(range(0, len(values), _CHECK_ELEMENTS)):
            block = values[start : start + _CHECK_ELEMENTS]
            if not np.isfinite(np.dot(block, block)) and not np.isfinite(block).all():
                return False
    return True


def weighted_sum(
    gradients: Sequence[NDArray[np.float32]],
    weights: Sequence[float],
    out: NDArray[np.float32],
    scratch: NDArray[np.float32],
) -> NDArray[np.float32]:
    """``((g0 * w0 + g1 * w1) + g2 * w2) ...`` in float32, in the order given; a weight of 1 multiplies nothing.

    Returns ``out``, or the gradient itself when it is the only one and its weight is 1. ``out`` may be the
    first gradient.
    """
    total = gradients[0]
    if weights[0] != 1.0:
        total = np.multiply(total, np.float32(weights[0]), out=out)
    for gradient, weight in zip(gradients[1:], weights[1:], strict=True):
        if weight != 1.0:
            gradient = np.multiply(gradient, np.float32(weight), out=scratch)
        total = np.add(total, gradient, out=out)
    return total
