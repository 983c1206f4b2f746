"""The jobs that ``planner_local`` predicts and trains, with made-up data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from leptonai import SGD, Adam, Arrays, Checkpoints, Data, Evaluate, Speed, TrainJob
from leptonai.training.parameter_server.settings import ParameterServer

ModelName = Literal["mlp", "cnn", "transformer"]
MODELS: tuple[ModelName, ...] = ("mlp", "cnn", "transformer")
NUM_EXAMPLES = 4096
CLASSES = 10
REPORT_SECONDS = 0.2
BATCHES = {"mlp": 256, "cnn": 64, "transformer": 64}


def build(name: ModelName, *, served: str = "") -> TrainJob:
    """One of the jobs; ``served``: the consistency of its parameter server, empty for none."""
    models: dict[str, Callable[[], Any]] = {"mlp": mlp, "cnn": cnn, "transformer": transformer}
    return TrainJob(
        model=models[name],
        data=lambda: data(name),
        loss="cross_entropy",
        optimizer=Adam(lr=1e-4) if name == "transformer" else SGD(lr=0.001, momentum=0.9),
        steps=50,
        global_batch_size=BATCHES[name],
        precision="float32",
        evaluate=Evaluate(every_epochs=0, metrics=()),
        checkpoints=Checkpoints(every_seconds=0),
        speed=Speed(log_every_seconds=REPORT_SECONDS),
        parameter_server=ParameterServer(consistency=served, servers=1) if served else None,
    )


def data(name: ModelName) -> Data:
    """Random numbers in the shape that the model takes, with random labels."""
    random = np.random.default_rng(1)
    labels = random.integers(0, CLASSES, NUM_EXAMPLES)
    inputs: NDArray[Any]
    if name == "transformer":
        inputs = random.integers(0, 1000, (NUM_EXAMPLES, 64))
    else:
        shape = (784,) if name == "mlp" else (3, 32, 32)
        inputs = random.standard_normal((NUM_EXAMPLES, *shape), dtype=np.float32)
    return Data(train=Arrays(inputs, labels))


def mlp() -> Any:
    """784-1024-1024-10."""
    from torch import nn

    return nn.Sequential(
        nn.Linear(784, 1024), nn.ReLU(), nn.Linear(1024, 1024), nn.ReLU(), nn.Linear(1024, CLASSES)
    )


def cnn() -> Any:
    """Three convolutions for images of 32x32 and a linear head: that of ``private_training``."""
    from benchmarks.private_training_models import cifar_cnn

    return cifar_cnn()


def transformer() -> Any:
    """Two blocks of width 128 over 64 tokens: that of ``private_training``."""
    from benchmarks.private_training_models import Transformer

    return Transformer()
