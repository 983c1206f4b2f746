"""The toy, trained privately."""

import dataclasses

import numpy as np
import torch
from toy import inputs, labels, toy

from leptonai.core.privacy import Privacy
from leptonai.training.data.dataset import Arrays, Data
from leptonai.training.data.draws import Draws
from leptonai.training.job import TrainJob


def users() -> np.ndarray:
    """Each example's user: three in a row belong together."""
    return np.arange(len(inputs)) // 3


class WriteDown:
    """An augmentation that draws a number for each step and writes it down, in worker 0 of 2."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, batch: tuple[np.ndarray, ...], draws: Draws) -> tuple[np.ndarray, ...]:
        if torch.distributed.is_initialized() and torch.distributed.get_rank() == 0:
            with open(self.path, "a") as file:
                file.write(f"{draws.uniform()[0]} {torch.initial_seed()}\n")
        return batch


def step(model: torch.nn.Module, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """The toy's loss as a step function."""
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])


def private(**changes: object) -> TrainJob:
    names = [item.name for item in dataclasses.fields(Privacy)]
    asked = {name: changes.pop(name) for name in names if name in changes}
    privacy = Privacy(**{"epsilon": 4.0, "delta": 1e-4, "clip": 1.0, **asked})  # type: ignore[arg-type]
    return toy(**{"privacy": privacy, **changes})  # type: ignore[arg-type]


def drawing(path: str) -> TrainJob:
    """The private toy with that augmentation."""
    return private(data=Data(train=Arrays(inputs, labels), augment=(WriteDown(path),)), epochs=1)
