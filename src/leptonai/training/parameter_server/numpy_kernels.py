"""Optimiser steps in NumPy, block by block so that a block stays in the cache: what fused kernels are held to."""

from __future__ import annotations

import math
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from leptonai.training.optimizers import SGD, Adagrad, Adam, AdamW, Lamb, Optimizer

_BLOCK_ELEMENTS = 1 << 13  # 32 KiB an array: the four or five of a step fit a core's cache

Floats = NDArray[np.float32]


class NumpyKernels:
    """The step of one optimiser; see :class:`~leptonai.training.parameter_server.kernels.Kernels`."""

    name = "numpy"

    def __init__(self, optimizer: Optimizer) -> None:
        assert not isinstance(optimizer, Lamb), "LAMB needs whole tensors: see lamb.py"
        self._optimizer: SGD | Adam | AdamW | Adagrad = optimizer
        self._scratch = np.empty((2, _BLOCK_ELEMENTS), np.float32)

    def update(self, parameters: Floats, gradient: Floats, states: Floats, *, lr: float, step: int) -> None:
        for start in range(0, len(parameters), _BLOCK_ELEMENTS):
            block = slice(start, start + _BLOCK_ELEMENTS)
            self._block(parameters[block], gradient[block], states[:, block], lr, step)

    def _block(self, parameters: Floats, gradient: Floats, states: Floats, lr: float, step: int) -> None:
        optimizer, (one, two) = self._optimizer, self._scratch[:, : len(parameters)]
        match optimizer:
            case SGD():
                _sgd(optimizer, parameters, gradient, states, lr, one)
            case AdamW():
                np.multiply(parameters, np.float32(1.0 - lr * optimizer.weight_decay), out=parameters)
                _adam(optimizer, parameters, gradient, states, lr, step, one, two)
            case Adam():
                _adam(optimizer, parameters, gradient, states, lr, step, one, two)
            case Adagrad():
                _adagrad(optimizer, parameters, gradient, states[0], lr, one, two)
            case _:
                assert_never(optimizer)


def moments(gradient: Floats, states: Floats, betas: tuple[float, float], scratch: Floats) -> None:
    """Move Adam's two running means, in place."""
    first, second = states
    np.subtract(gradient, first, out=scratch)
    np.multiply(scratch, np.float32(1.0 - betas[0]), out=scratch)
    np.add(first, scratch, out=first)
    np.multiply(gradient, gradient, out=scratch)
    np.multiply(scratch, np.float32(1.0 - betas[1]), out=scratch)
    np.multiply(second, np.float32(betas[1]), out=second)
    np.add(second, scratch, out=second)


def _sgd(
    optimizer: SGD, parameters: Floats, gradient: Floats, states: Floats, lr: float, one: Floats
) -> None:
    if optimizer.weight_decay:
        np.multiply(parameters, np.float32(optimizer.weight_decay), out=one)
        gradient = np.add(gradient, one, out=one)
    if optimizer.momentum:
        momentum, factor = states[0], np.float32(optimizer.momentum)
        np.multiply(momentum, factor, out=momentum)
        np.add(momentum, gradient, out=momentum)
        if optimizer.nesterov:
            # In place would need the decayed gradient twice: move by it, then by the momentum.
            np.subtract(parameters, np.multiply(gradient, np.float32(lr), out=one), out=parameters)
            np.multiply(momentum, np.float32(lr * optimizer.momentum), out=one)
            np.subtract(parameters, one, out=parameters)
            return
        gradient = momentum
    np.subtract(parameters, np.multiply(gradient, np.float32(lr), out=one), out=parameters)


def _adam(
    optimizer: Adam | AdamW, parameters: Floats, gradient: Floats, states: Floats,
    lr: float, step: int, one: Floats, two: Floats,
) -> None:  # fmt: skip
    moments(gradient, states, optimizer.betas, one)
    first, second = states
    np.sqrt(second, out=one)
    np.multiply(one, np.float32(1.0 / math.sqrt(1.0 - optimizer.betas[1] ** step)), out=one)
    np.add(one, np.float32(optimizer.eps), out=one)
    np.divide(first, one, out=two)
    np.multiply(two, np.float32(lr / (1.0 - optimizer.betas[0] ** step)), out=two)
    np.subtract(parameters, two, out=parameters)


def _adagrad(
    optimizer: Adagrad, parameters: Floats, gradient: Floats, total: Floats, lr: float, one: Floats, two: Floats
) -> None:  # fmt: skip
    if optimizer.weight_decay:
        np.multiply(parameters, np.float32(optimizer.weight_decay), out=two)
        gradient = np.add(gradient, two, out=two)
    np.add(total, np.multiply(gradient, gradient, out=one), out=total)
    np.add(np.sqrt(total, out=one), np.float32(optimizer.eps), out=one)
    np.divide(gradient, one, out=one)
    np.multiply(one, np.float32(lr), out=one)
    np.subtract(parameters, one, out=parameters)
