"""Optimiser steps by PyTorch's fused CPU kernels: one pass over memory.

These functions are private to PyTorch; :func:`~leptonai.training.parameter_server.kernels.choose_kernels`
checks them before use. A server process should set one thread: the kernels are called chunk by chunk, and
handing a chunk to other threads costs more than it brings.
"""

from __future__ import annotations

from typing import Any, assert_never

import numpy as np
import torch
from numpy.typing import NDArray

from leptonai.training.optimizers import SGD, Adagrad, Adam, AdamW, Lamb, Optimizer

Floats = NDArray[np.float32]


class TorchKernels:
    """The step of one optimiser; see :class:`~leptonai.training.parameter_server.kernels.Kernels`.

    Raises:
        AttributeError: this PyTorch does not have the kernel.
    """

    name = "torch"

    def __init__(self, optimizer: Optimizer) -> None:
        self._step, self._step_tensor = -1, torch.zeros(1)
        self._options: dict[str, Any] = {}
        match optimizer:
            case SGD():
                self._function: Any = torch._fused_sgd_
                self._options = {
                    "momentum": optimizer.momentum, "nesterov": optimizer.nesterov, "dampening": 0.0,
                    "weight_decay": optimizer.weight_decay, "maximize": False, "is_first_step": False,
                }  # fmt: skip
            case Adam() | AdamW():
                decay = optimizer.weight_decay if isinstance(optimizer, AdamW) else 0.0
                self._function = torch._fused_adamw_ if decay else torch._fused_adam_
                self._options = {
                    "beta1": optimizer.betas[0], "beta2": optimizer.betas[1], "eps": optimizer.eps,
                    "weight_decay": decay, "amsgrad": False, "maximize": False,
                }  # fmt: skip
            case Adagrad():
                self._function = torch._fused_adagrad_
                self._options = {
                    "eps": optimizer.eps, "weight_decay": optimizer.weight_decay, "lr_decay": 0.0, "maximize": False,
                }  # fmt: skip
            case Lamb():
                raise AttributeError("PyTorch has no LAMB")
            case _:
                assert_never(optimizer)
        self._optimizer = optimizer

    def update(self, parameters: Floats, gradient: Floats, states: Floats, *, lr: float, step: int) -> None:
        p, g = [torch.from_numpy(parameters)], [torch.from_numpy(gradient)]
        rows = [[torch.from_numpy(row)] for row in states]
        match self._optimizer:
            case SGD():
                self._function(p, g, rows[0] if rows else [], lr=lr, **self._options)
            case Adagrad():
                self._function(p, g, rows[0], self._steps(step), lr=lr, **self._options)
            case _:
                self._function(p, g, *rows, [], self._steps(step), lr=lr, **self._options)

    def _steps(self, step: int) -> list[torch.Tensor]:
        if step != self._step:
            self._step, self._step_tensor = step, torch.tensor(float(step))
        return [self._step_tensor]
