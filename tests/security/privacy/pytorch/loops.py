"""The reference: one float64 backward pass an example."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]


def cross_entropy(model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Mean loss of a classifier."""
    return nn.functional.cross_entropy(model(inputs), labels)


def example_gradients(model: nn.Module, inputs: Tensor, labels: Tensor, loss: Loss = cross_entropy) -> Tensor:
    """(B, P) float64."""
    double = copy.deepcopy(model).double()
    inputs = inputs.double() if inputs.is_floating_point() else inputs
    rows = []
    for at in range(len(inputs)):
        double.zero_grad()
        loss(double, inputs[at : at + 1], labels[at : at + 1]).backward()
        rows.append(
            torch.cat(
                [
                    (torch.zeros_like(each) if each.grad is None else each.grad).flatten()
                    for each in double.parameters()
                    if each.requires_grad
                ]
            )
        )
    return torch.stack(rows)


def clipped_sum(gradients_BP: Tensor, clip: float) -> Tensor:
    """(P,) float64."""
    return (gradients_BP * (clip / gradients_BP.norm(dim=1, keepdim=True)).clamp(max=1.0)).sum(0)


def relative_error(found_P: Tensor, expected_P: Tensor) -> float:
    """Norm of the difference over norm of what was expected."""
    return float((found_P.double() - expected_P).norm() / expected_P.norm())
