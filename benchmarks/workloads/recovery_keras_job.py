"""The run of ``recovery_job`` with a Keras model, trained by TensorFlow."""

from __future__ import annotations

import os

import keras

from benchmarks.workloads.recovery_job import data
from leptonai import SGD, Checkpoints, Evaluate, Speed, TrainJob
from leptonai.training.elastic import Elastic
from leptonai.training.parameter_server.settings import ParameterServer


def network() -> keras.Model:
    """A perceptron of 101,770 parameters."""
    return keras.Sequential(
        [keras.Input((784,)), keras.layers.Dense(128, activation="relu"), keras.layers.Dense(10)]
    )


job = TrainJob(
    model=network,
    data=data,
    loss="cross_entropy",
    optimizer=SGD(lr=0.01, momentum=0.9),
    steps=1_000_000,
    global_batch_size=64,
    precision="float32",
    evaluate=Evaluate(every_epochs=0),
    checkpoints=Checkpoints(every_seconds=0),
    speed=Speed(log_every_seconds=1e-6),
    elastic=Elastic(spare=int(os.environ.get("BENCHMARK_SPARES", "1")), max_losses=100_000),
    parameter_server=ParameterServer(consistency="asp", servers=2),
)
