"""The recipe of ``consistency``: the example's small LeNet, one for every mode.

Told by the environment: ``BENCHMARK_DATA`` (the folder of arrays), ``BENCHMARK_SERVER`` (the parameter
server's settings as JSON) and ``BENCHMARK_EPOCHS``. The recipe was settled before any mode was measured: plain
SGD with momentum and a cosine, for the server's optimiser and the workers' own alike.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from torch import nn

from benchmarks.workloads.arrays import read_images
from leptonai import SGD, Arrays, Checkpoints, Cosine, Data, Evaluate, TrainJob
from leptonai.training.parameter_server.settings import ParameterServer

BATCH = 120
"""Over all workers; MNIST then has 500 steps an epoch, a multiple of every mode's steps between exchanges."""

HELD_OUT = 6000
"""Of the training set, to choose a mode's parameters by: with ``BENCHMARK_HELD_OUT=1`` the test set is not read."""


def network() -> nn.Module:
    """That of ``examples/mnist``: 73,594 parameters.

    >>> sum(parameter.numel() for parameter in network().parameters())
    73594
    """
    return nn.Sequential(
        nn.Conv2d(1, 8, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Conv2d(8, 32, 5),
        nn.MaxPool2d(2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def data() -> Data:
    """Normalised MNIST, mapped into memory."""
    folder = Path(os.environ["BENCHMARK_DATA"])
    if os.environ.get("BENCHMARK_HELD_OUT"):
        images, labels = read_images(folder, "train")
        kept = len(labels) - HELD_OUT
        return Data(train=Arrays(images[:kept], labels[:kept]), evaluate=Arrays(images[kept:], labels[kept:]))
    return Data(train=Arrays(*read_images(folder, "train")), evaluate=Arrays(*read_images(folder, "test")))


job = TrainJob(
    model=network,
    data=data,
    loss="cross_entropy",
    optimizer=SGD(lr=0.05, momentum=0.9),
    schedule=Cosine(warmup_steps=100),
    epochs=float(os.environ.get("BENCHMARK_EPOCHS", "1")),
    global_batch_size=BATCH,
    precision="float32",
    evaluate=Evaluate(every_epochs=0, batch_size=500),
    checkpoints=Checkpoints(every_seconds=0),
    parameter_server=ParameterServer(**json.loads(os.environ.get("BENCHMARK_SERVER", "{}"))),
)
