"""Training that counts: every example adds one to its own two parameters, so that they end as an exact audit.

Two columns of weights, that lie on different shards, start at zero. The loss is the mean of an example's two
weights, the rate the size of the global batch: a step takes exactly 1 from both weights of each of its examples.
After E epochs every weight is -E, unless an example was lost (above) or used twice (below). All numbers are
whole and small: float32 keeps them exactly, in whatever order updates come.
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

EXAMPLES = 16_384
BATCH = 64
EPOCHS = int(os.environ.get("BENCHMARK_EPOCHS", "1"))
STEP_SECONDS = 0.004


class Count(nn.Module):
    """Looks up both weights of each example; a training step lasts a few milliseconds, to be killed in."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = (nn.Parameter(torch.zeros(EXAMPLES)) for _ in range(2))

    def forward(self, examples: torch.Tensor) -> torch.Tensor:
        if self.training and len(examples) > 2:
            time.sleep(STEP_SECONDS)
        return self.first[examples] + self.second[examples]


def data() -> Data:
    """Each example is its own number."""
    numbers = np.arange(EXAMPLES, dtype=np.int64)
    return Data(train=Arrays(numbers, numbers))


def mean(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """The loss."""
    return outputs.mean()


job = TrainJob(
    model=Count,
    data=data,
    loss=mean,
    optimizer=SGD(lr=float(BATCH)),
    epochs=EPOCHS,
    global_batch_size=BATCH,
    precision="float32",
    evaluate=Evaluate(every_epochs=0),
    checkpoints=Checkpoints(every_seconds=0),
    speed=Speed(log_every_seconds=0.1),
    elastic=Elastic(spare=1, max_losses=1000),
    parameter_server=ParameterServer(consistency=os.environ.get("BENCHMARK_MODE", "asp"), servers=2),
)
