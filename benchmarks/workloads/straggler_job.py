"""Training in which every step is padded by sleep, and that of one worker of four to four times as long.

Told by the environment: ``BENCHMARK_DATA``, ``BENCHMARK_SERVER`` and ``BENCHMARK_EPOCHS`` as in
``consistency_job``, and ``BENCHMARK_PACE``, a folder of this run alone.

The sleep lies between reading the parameters and pushing the gradient, as a slow processor's time would: the
slow worker's gradients are as old as they would be there. The network is small, so that two cores compute for
four workers well within the shortest step. There is no momentum: updates that come late act like momentum
already (Mitliagkas et al. 2016), and with 0.9 on top the asynchronous mode does not settle at this rate.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import torch
from torch import nn

from benchmarks.workloads.consistency_job import data
from leptonai import SGD, Checkpoints, Evaluate, TrainJob
from leptonai.training.parameter_server.settings import ParameterServer

STEP_SECONDS = 0.1
SLOW_STEP_SECONDS = 0.4
BATCH = 1200
"""Over four workers: 50 steps an epoch."""


class Paced(nn.Module):
    """A network whose training step lasts at least so long, from its forward pass to its gradient.

    The first worker to ask is the slow one. Each writes down when it began its first step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 10))
        self._seconds: float | None = None

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if not self.training or len(images) <= 2:  # evaluating, or tried on two examples before the run
            return self.layers(images)  # type: ignore[no-any-return]
        if self._seconds is None:
            self._seconds = take_pace(Path(os.environ["BENCHMARK_PACE"]))
        until = time.monotonic() + self._seconds
        outputs: torch.Tensor = self.layers(images)
        outputs.register_hook(lambda _: time.sleep(max(0.0, until - time.monotonic())))  # type: ignore[no-untyped-call]
        return outputs


def take_pace(folder: Path) -> float:
    """Seconds a step of this process: the first to come is slow. Writes down the time."""
    folder.mkdir(exist_ok=True)
    (folder / f"{os.getpid()}.began").write_text(repr(time.time()))
    try:
        (folder / "slow").touch(exist_ok=False)
    except FileExistsError:
        return STEP_SECONDS
    return SLOW_STEP_SECONDS


job = TrainJob(
    model=Paced,
    data=data,
    loss="cross_entropy",
    optimizer=SGD(lr=0.3),
    epochs=float(os.environ.get("BENCHMARK_EPOCHS", "1")),
    global_batch_size=BATCH,
    precision="float32",
    evaluate=Evaluate(every_epochs=0, every_steps=10, batch_size=1000),
    checkpoints=Checkpoints(every_seconds=0),
    parameter_server=ParameterServer(**json.loads(os.environ.get("BENCHMARK_SERVER", "{}"))),
)
