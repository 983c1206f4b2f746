"""A small job whose behaviour tests steer by variables: what the network is, and where which worker misbehaves."""

import os
import signal
import sys
import time

import numpy as np
import torch
from torch import nn

from leptonai.training.data.dataset import Arrays, Data
from leptonai.training.data.draws import Draws
from leptonai.training.elastic import Elastic  # noqa: F401
from leptonai.training.job import Checkpoints, Evaluate, Speed, StopWhen, TrainJob  # noqa: F401
from leptonai.training.optimizers import SGD, AdamW
from leptonai.training.schedules import OneCycle

rng = np.random.default_rng(0)
inputs = rng.normal(size=(203, 12)).astype(np.float32)
labels = (inputs[:, :3].sum(1) > 0).astype(np.int64) + (inputs[:, 3] > 1)


class Net(nn.Module):
    """Two layers that do what the job's mood says at a certain call."""

    def __init__(self, mood: str = "", at: int = 0, rank: int = 0, pause: float = 0.0) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(12, 24), nn.Dropout(0.0), nn.Tanh(), nn.Linear(24, 3))
        self.mood, self.at, self.rank, self.pause = mood, at, rank, pause
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training and torch.distributed.is_initialized():
            self.calls += 1
            time.sleep(self.pause)
            if self.calls == self.at and torch.distributed.get_rank() == self.rank:
                self.misbehave()
        outputs = self.layers(x)
        if (
            self.mood == "nan"
            and self.training
            and self.calls == self.at
            and torch.distributed.get_rank() == self.rank
        ):
            outputs = outputs * float("nan")
        return outputs

    def misbehave(self) -> None:
        print(f"about to {self.mood}", file=sys.stderr, flush=True)
        if self.mood == "raise":
            raise ValueError("the toy broke")
        if self.mood == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.mood == "exit":
            os._exit(3)
        if self.mood == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if self.mood == "spin":
            while True:
                time.sleep(0.05)


class Note:
    """An augmentation that writes down the step and the last column of the examples it is given."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, batch: tuple[np.ndarray, ...], draws: Draws) -> tuple[np.ndarray, ...]:
        if torch.distributed.is_initialized():  # not in the look before the run
            with open(self.path, "a") as file:
                file.write(f"{draws._step} {' '.join(str(int(index)) for index in batch[0][:, -1])}\n")
        return batch


def toy(mood: str = "", at: int = 3, rank: int = 1, pause: float = 0.0, **changes: object) -> TrainJob:
    settings: dict[str, object] = {
        "model": lambda: Net(mood, at, rank, pause),
        "data": Data(train=Arrays(inputs, labels), evaluate=Arrays(inputs[:50], labels[:50])),
        "loss": "cross_entropy",
        "optimizer": SGD(lr=0.1, momentum=0.9),
        "schedule": OneCycle(),
        "epochs": 4,
        "global_batch_size": 30,
        "seed": 5,
        "evaluate": Evaluate(),
        "checkpoints": Checkpoints(every_steps=3, every_seconds=0, keep=2),
        "name": "toy",
    }
    return TrainJob(**{**settings, **changes})  # type: ignore[arg-type]


adamw = AdamW(lr=0.01)
job = toy()
