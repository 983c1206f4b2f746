"""Losses, metrics and optimisers of a job as PyTorch's own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.nn import functional

from leptonai.core.errors import InputError
from leptonai.training.job import Loss, Metric, TrainJob
from leptonai.training.optimizers import SGD, Adagrad, Adam, AdamW, Lamb, Optimizer

TensorFunction = Callable[[Any, Any], torch.Tensor]


def loss_function(loss: Loss | None) -> TensorFunction:
    """Mean loss over a batch of (outputs, labels)."""
    if loss is None:
        raise InputError(
            "TrainJob: a PyTorch job needs a loss or a step",
            hint='write loss="cross_entropy", or step=a function of (model, batch)',
        )
    if not isinstance(loss, str):
        return loss
    return {"cross_entropy": _cross_entropy, "binary_cross_entropy": _binary_cross_entropy, "mse": _mse}[loss]


def _cross_entropy(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Outputs (B, K) with labels (B,), or (B, T, K) with (B, T); classes last."""
    if labels.is_floating_point():
        return functional.cross_entropy(outputs, labels)
    return functional.cross_entropy(outputs.flatten(0, -2), labels.reshape(-1).long())


def _binary_cross_entropy(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.binary_cross_entropy_with_logits(
        outputs.reshape(labels.shape), labels.to(outputs.dtype)
    )


def _mse(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.mse_loss(outputs.reshape(labels.shape), labels.to(outputs.dtype))


def metric_function(metric: Metric) -> TensorFunction:
    """One value an example, from (outputs, labels)."""
    if not isinstance(metric, str):
        return metric
    return {"accuracy": _accuracy, "mae": _mae, "mse": _squared_error}[metric]


def _accuracy(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    if outputs.ndim == labels.ndim and outputs.shape == labels.shape and not labels.is_floating_point():
        right = (outputs > 0) == (labels > 0)
    elif outputs.ndim == labels.ndim and outputs.shape[-1] == 1:
        right = (outputs > 0) == (labels > 0.5)
    elif outputs.ndim == labels.ndim:  # one-hot labels
        right = outputs.argmax(-1) == labels.argmax(-1)
    elif outputs.ndim == labels.ndim + 1 and outputs.shape[-1] == 1:
        right = (outputs.squeeze(-1) > 0) == (labels > 0.5)
    else:
        right = outputs.argmax(-1) == labels
    return right.float().reshape(len(right), -1).mean(1)


def _mae(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (outputs.reshape(labels.shape) - labels).abs().float().reshape(len(labels), -1).mean(1)


def _squared_error(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return (outputs.reshape(labels.shape) - labels).square().float().reshape(len(labels), -1).mean(1)


def build_optimizer(job: TrainJob, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
    """The job's optimiser over these parameters, fused (one pass over memory) where PyTorch has it.

    Raises:
        InputError: PyTorch does not have it, or the job's function made something else.
    """
    chosen = job.optimizer if job.optimizer is not None else Adam()
    if not isinstance(chosen, Optimizer):
        made = chosen(parameters)
        if not isinstance(made, torch.optim.Optimizer):
            raise InputError(
                f"TrainJob: optimizer() returned {type(made).__name__}, expected a torch.optim.Optimizer"
            )
        return made
    return _from_value(chosen, list(parameters))


def _from_value(chosen: Optimizer, parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
    # Fused SGD with momentum gives wrong results on bfloat16 parameters (seen with torch 2.13 on CPU).
    fused = all(parameter.dtype != torch.bfloat16 for parameter in parameters)
    match chosen:
        case SGD():
            return torch.optim.SGD(
                parameters, lr=chosen.lr, momentum=chosen.momentum, nesterov=chosen.nesterov,
                weight_decay=chosen.weight_decay, fused=fused,
            )  # fmt: skip
        case Adam():
            return torch.optim.Adam(parameters, lr=chosen.lr, betas=chosen.betas, eps=chosen.eps, fused=fused)
        case AdamW():
            return torch.optim.AdamW(
                parameters, lr=chosen.lr, betas=chosen.betas, eps=chosen.eps,
                weight_decay=chosen.weight_decay, fused=fused,
            )  # fmt: skip
        case Adagrad():
            return torch.optim.Adagrad(
                parameters, lr=chosen.lr, eps=chosen.eps, weight_decay=chosen.weight_decay,
                initial_accumulator_value=chosen.initial_accumulator, fused=fused,
            )  # fmt: skip
        case Lamb():
            raise InputError(
                "PyTorch has no LAMB of its own",
                hint="train with a parameter server, which has it, or use AdamW",
            )


def num_classes(loss: Loss | None, outputs: Any) -> int | None:
    """How many classes integer labels may name, if the loss says so."""
    if loss == "cross_entropy" and isinstance(outputs, torch.Tensor) and outputs.ndim >= 2:
        return outputs.shape[-1]
    return None
