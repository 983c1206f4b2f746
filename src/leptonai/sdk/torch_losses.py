"""Losses and metrics for modules that end in a softmax or sigmoid of their own, by name in the workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from leptonai.sdk.inference import Activation, FittingLoss

_SMALLEST = 1e-7  # keeps the logarithm of a probability finite, as Keras does


def probability_cross_entropy(outputs: Any, labels: Any) -> Any:
    """Cross entropy of class probabilities; labels are class numbers or rows of probabilities."""
    return log_cross_entropy(outputs.clamp(_SMALLEST, 1.0).log(), labels)


def log_cross_entropy(outputs: Any, labels: Any) -> Any:
    """Cross entropy of logarithms of class probabilities."""
    if labels.ndim == outputs.ndim and labels.shape[-1] == outputs.shape[-1]:
        return -(labels.to(outputs.dtype) * outputs).sum(-1).mean()
    return functional.nll_loss(outputs, labels.reshape(-1).long())


def logit_cross_entropy(outputs: Any, labels: Any) -> Any:
    """Cross entropy of logits."""
    if labels.ndim == outputs.ndim and labels.shape[-1] == outputs.shape[-1]:
        return functional.cross_entropy(outputs, labels.to(outputs.dtype))
    return functional.cross_entropy(outputs, labels.reshape(-1).long())


def probability_binary_cross_entropy(outputs: Any, labels: Any) -> Any:
    """Binary cross entropy of probabilities."""
    # Not autocast: PyTorch refuses this one in half precision.
    with torch.autocast(outputs.device.type, enabled=False):
        return functional.binary_cross_entropy(outputs.float(), labels.reshape(outputs.shape).float())


def probability_accuracy(outputs: Any, labels: Any) -> Any:
    """Share of right answers, one value an example, of probabilities above or below a half."""
    right = (outputs > 0.5) == (labels.reshape(outputs.shape) > 0.5)
    return right.float().reshape(len(right), -1).mean(1)


def class_accuracy(outputs: Any, labels: Any) -> Any:
    """1 where the largest output is the class; labels are class numbers or one-hot rows."""
    one_hot = labels.ndim == outputs.ndim and labels.shape[-1] == outputs.shape[-1]
    classes = labels.argmax(-1) if one_hot else labels.reshape(-1)
    return (outputs.argmax(-1) == classes).float()


def loss_and_metrics(
    name: FittingLoss, activation: Activation
) -> tuple[str | Callable[[Any, Any], Any], dict[str, Callable[[Any, Any], Any]]]:
    """The loss function and the metrics that go with it."""
    match name:
        case "mse":
            return "mse", {}
        case "binary":
            return probability_binary_cross_entropy, {"accuracy": probability_accuracy}
        case _:
            by_activation = {"softmax": probability_cross_entropy, "log_softmax": log_cross_entropy}
            return by_activation.get(activation, logit_cross_entropy), {"accuracy": class_accuracy}


def last_activation(module: nn.Module) -> Activation:
    """What the last layer of a chain of layers applies; a module with a ``forward`` of its own may do anything."""
    while isinstance(module, nn.Sequential) and len(module) > 0:
        module = module[-1]
    match module:
        case nn.Softmax():
            return "softmax"
        case nn.LogSoftmax():
            return "log_softmax"
        case nn.Sigmoid():
            return "sigmoid"
        case _:
            return "other"
