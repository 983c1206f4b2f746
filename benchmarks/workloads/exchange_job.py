"""Training whose bytes are counted: the network of ``sync_training``, 1.2 million parameters, in small batches.

Told by the environment as ``consistency_job``. How small the batches are alters no byte.
"""

from __future__ import annotations

import json
import os

from benchmarks.workloads.consistency_job import data
from benchmarks.workloads.conv_net import network
from leptonai import SGD, Checkpoints, Evaluate, TrainJob
from leptonai.training.parameter_server.settings import ParameterServer

BATCH = 24
"""MNIST then has 2,500 steps an epoch."""

job = TrainJob(
    model=network,
    data=data,
    loss="cross_entropy",
    optimizer=SGD(lr=0.02, momentum=0.9),
    epochs=float(os.environ.get("BENCHMARK_EPOCHS", "1")),
    global_batch_size=BATCH,
    precision="float32",
    evaluate=Evaluate(every_epochs=0, batch_size=500),
    checkpoints=Checkpoints(every_seconds=0),
    parameter_server=ParameterServer(**json.loads(os.environ.get("BENCHMARK_SERVER", "{}"))),
)
