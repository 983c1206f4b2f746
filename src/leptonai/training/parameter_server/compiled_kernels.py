"""Optimiser steps in C: one pass over memory, with the undo journal in the same pass.

The results are those of :class:`~leptonai.training.parameter_server.numpy_kernels.NumpyKernels` to the bit.
"""

from __future__ import annotations

import ctypes
import math
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from leptonai.training.optimizers import SGD, Adagrad, Adam, AdamW, Lamb, Optimizer
from leptonai.training.parameter_server.compiled.library import library
from leptonai.training.parameter_server.kernels import BlockJournal

Floats = NDArray[np.float32]

_SGD_PLAIN, _SGD_MOMENTUM, _SGD_NESTEROV, _ADAM, _ADAGRAD = range(5)  # as in kernels.c
_BLOCK_ELEMENTS = 1 << 11
_STREAM_ELEMENTS = 1 << 18
"""From here on a copy does not fit the cache of who reads it, and goes past it."""


class CompiledKernels:
    """The step of one optimiser; see :class:`~leptonai.training.parameter_server.kernels.JournallingKernels`.

    Raises:
        RuntimeError: there is no library.
    """

    name = "compiled"

    def __init__(self, optimizer: Optimizer) -> None:
        assert not isinstance(optimizer, Lamb), "LAMB needs whole tensors: see lamb.py"
        found = library()
        if found is None:
            raise RuntimeError("there are no compiled kernels here")
        self._library, self._optimizer = found, optimizer
        self._step, self._rule, self._values = (-1.0, -1), -1, (ctypes.c_float * 0)()
        self.fuse = ctypes.c_int64(-1)
        """For tests: steps left until a call ends in the middle, like a killed process; negative: never."""

    def update(self, parameters: Floats, gradient: Floats, states: Floats, *, lr: float, step: int) -> None:
        self.update_journalled(parameters, gradient, states, lr=lr, step=step, journal=None)

    def update_journalled(
        self, parameters: Floats, gradient: Floats, states: Floats,
        *, lr: float, step: int, journal: BlockJournal | None,
    ) -> None:  # fmt: skip
        if (lr, step) != self._step:  # once an update, not once a chunk
            rule, values = self._constants(lr, step)
            self._rule, self._values, self._step = rule, (ctypes.c_float * len(values))(*values), (lr, step)
        rows = [_address(row) for row in states] + [None, None]
        assert gradient.flags.c_contiguous
        done = self._library.lepton_step(
            self._rule, _address(parameters), _address(gradient), rows[0], rows[1], len(parameters), self._values,
            _address(journal.slots) if journal else None,
            _address(journal.marker) if journal else None,
            journal.tag if journal else 0,
            journal.first if journal else 0,
            journal.block_elements if journal else _BLOCK_ELEMENTS,
            self.fuse,  # ctypes passes its address
        )  # fmt: skip
        if not done:
            raise RuntimeError("the fuse of these kernels has burnt down")

    def _constants(self, lr: float, step: int) -> tuple[int, list[float]]:
        """The rule's number and constants, computed in float64 and rounded once."""
        optimizer = self._optimizer
        match optimizer:
            case SGD():
                rule = (
                    _SGD_NESTEROV
                    if optimizer.nesterov
                    else _SGD_MOMENTUM
                    if optimizer.momentum
                    else _SGD_PLAIN
                )
                return rule, [lr, optimizer.weight_decay, optimizer.momentum, lr * optimizer.momentum]
            case Adam() | AdamW():
                one, two = optimizer.betas
                decay = optimizer.weight_decay if isinstance(optimizer, AdamW) else 0.0
                return _ADAM, [
                    lr / (1.0 - one**step), 1.0 - lr * decay, 1.0 - one, 1.0 - two, two,
                    1.0 / math.sqrt(1.0 - two**step), optimizer.eps,
                ]  # fmt: skip
            case Adagrad():
                return _ADAGRAD, [lr, optimizer.weight_decay, optimizer.eps]
            case Lamb():
                raise AssertionError
            case _:
                assert_never(optimizer)


def copy_checked(source: Floats, target: Floats) -> bool | None:
    """Copy in one pass and say whether all numbers are finite; None: not done, there is no library."""
    found = library()
    if found is None or not (source.flags.c_contiguous and target.flags.c_contiguous):
        return None
    assert len(source) == len(target)
    size = len(source)
    return bool(found.lepton_copy_checked(_address(target), _address(source), size, size >= _STREAM_ELEMENTS))


def _address(array: NDArray[np.generic]) -> int:
    address: int = array.__array_interface__["data"][0]  # a third of the time of array.ctypes.data
    return address
