"""The models that ``planner_local`` predicts and trains, with made-up data; also the child that looks at one.

``python -m benchmarks.planner_local_jobs MODEL NUM_WORKERS [--time SECONDS]`` prints the job's workload, traced
without training, as JSON, and with ``--time`` what its operations take one by one.
"""

from __future__ import annotations

import argparse
import json
import sys
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
OPTIMIZER_STATES = {"mlp": 1, "cnn": 1, "transformer": 2}


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


def look(name: ModelName, *, num_workers: int, seconds: float) -> dict[str, Any]:
    """The job's workload and, for ``seconds`` > 0, its operations' times on one worker's share of a batch."""
    import torch

    from leptonai.core.values import value_to_json
    from leptonai.training.pytorch.losses import loss_function
    from leptonai.training.pytorch.operation_timing import time_operations
    from leptonai.training.pytorch.profile import profile, sample

    job = build(name)
    examples, model = job.load_data(), job.model()
    found: dict[str, Any] = {"workload": profile(job, examples, model).workload.to_json()}
    if seconds > 0:
        torch.set_num_threads(1)
        loss = loss_function(job.loss or "cross_entropy")
        columns = tuple(torch.from_numpy(each) for each in sample(examples, BATCHES[name] // num_workers))
        timed = time_operations(
            model, columns, lambda net, batch: loss(net(*batch[:-1]), batch[-1]), max_seconds=seconds,
            num_busy=num_workers,
        )  # fmt: skip
        found["timed"] = value_to_json(timed)
    return found


def main() -> int:
    """Look at one job and print what was found."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planner_local_jobs")
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("num_workers", type=int)
    parser.add_argument("--time", type=float, default=0.0)
    words = parser.parse_args()
    sys.stdout.write(json.dumps(look(words.model, num_workers=words.num_workers, seconds=words.time)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
