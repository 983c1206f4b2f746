"""Checks of a PyTorch job before it trains privately, on a few of its own examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from leptonai.security.privacy.pytorch.independence import check_independence, check_loss
from leptonai.security.privacy.pytorch.refusals import check_model
from leptonai.training.pytorch.losses import loss_function

if TYPE_CHECKING:
    from leptonai.training.job import TrainJob
    from leptonai.training.learner import Batch


def check_torch_job(job: TrainJob, model: nn.Module, batch: Batch) -> int:
    """Refuse layers, losses and steps that let one example touch another's gradient.

    Returns:
        The number of trainable parameters.

    Raises:
        Refused: something mixes examples, or a parameter is not float32.
    """
    check_model(model)
    tensors = tuple(torch.from_numpy(column.copy()) for column in batch)
    if job.step is None:
        *inputs, labels = tensors
        check_independence(model, tuple(inputs))
        with torch.no_grad():
            outputs: Any = model(*inputs)
        check_loss(loss_function(job.loss), outputs, labels)
    else:
        _check_step(job.step, model, tensors)
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def _check_step(step: Callable[[Any, Any], Any], model: nn.Module, tensors: tuple[torch.Tensor, ...]) -> None:
    """A step's loss must be the mean over its examples too; they are named by their places here."""
    places = torch.arange(len(tensors[0]))
    training = model.training
    model.eval()  # without dropout, which would look like a dependence
    try:
        check_loss(lambda chosen, _: step(model, tuple(column[chosen] for column in tensors)), places, places)
    finally:
        model.train(training)
