"""Our side of ``sync_training``: the network, recipe and files that the peers use.

The benchmark passes ``BENCHMARK_DATA`` (the folder of arrays); it sets steps, batch and seed with ``--set``.
"""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.workloads.arrays import read_images
from benchmarks.workloads.conv_net import BATCH_PER_WORKER, LEARNING_RATE, MOMENTUM, network
from leptonai import SGD, Arrays, Checkpoints, Data, Evaluate, TrainJob


def data() -> Data:
    """Normalised MNIST, mapped into memory."""
    folder = Path(os.environ["BENCHMARK_DATA"])
    return Data(train=Arrays(*read_images(folder, "train")), evaluate=Arrays(*read_images(folder, "test")))


job = TrainJob(
    model=network,
    data=data,
    loss="cross_entropy",
    optimizer=SGD(lr=LEARNING_RATE, momentum=MOMENTUM),
    steps=60,
    global_batch_size=2 * BATCH_PER_WORKER,
    evaluate=Evaluate(every_epochs=0, batch_size=250),
    checkpoints=Checkpoints(every_seconds=0),
)
