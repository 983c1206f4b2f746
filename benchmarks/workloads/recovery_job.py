"""A PyTorch run to kill processes of: a step every ten milliseconds, for as long as it is let.

Told by the environment: ``BENCHMARK_SPARES`` (workers that stand by) and ``BENCHMARK_SERVED`` (0: workers sum
their gradients among themselves, no loss is borne, and a checkpoint is written every twenty steps).
"""

from __future__ import annotations

import os
import time

import numpy as np
import torch
from torch import nn

from leptonai import SGD, Arrays, Checkpoints, Data, Evaluate, Speed, TrainJob
from leptonai.training.elastic import Elastic
from leptonai.training.parameter_server.settings import ParameterServer

STEP_SECONDS = 0.01
EXAMPLES = 6400
SERVED = os.environ.get("BENCHMARK_SERVED", "1") == "1"


class Slept(nn.Module):
    """A perceptron of 101,770 parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        if self.training and len(inputs) > 2:
            time.sleep(STEP_SECONDS)
        return self.layers(inputs)  # type: ignore[no-any-return]


def data() -> Data:
    """Noise: what is learned does not matter here."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(EXAMPLES, 784)).astype(np.float32)
    return Data(train=Arrays(inputs, rng.integers(0, 10, EXAMPLES)))


job = TrainJob(
    model=Slept,
    data=data,
    loss="cross_entropy",
    optimizer=SGD(lr=0.01, momentum=0.9),
    steps=1_000_000,
    global_batch_size=64,
    precision="float32",
    evaluate=Evaluate(every_epochs=0),
    checkpoints=Checkpoints(every_seconds=0, every_steps=0 if SERVED else 20),
    speed=Speed(log_every_seconds=1e-6),
    elastic=Elastic(spare=int(os.environ.get("BENCHMARK_SPARES", "1")), max_losses=100_000)
    if SERVED
    else None,
    parameter_server=ParameterServer(consistency="asp", servers=2) if SERVED else None,
)
