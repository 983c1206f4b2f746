"""A private job of :mod:`benchmarks.private_accuracy` on few examples and for few steps: shows that it works.

``BENCHMARK_TASK`` names it: ``mnist`` or ``cifar10``.
"""

from __future__ import annotations

import os
from dataclasses import replace

from benchmarks.private_accuracy import TASKS
from leptonai import Data, datasets
from leptonai.launch.jobs import load_job
from leptonai.training.pytorch.scattering_features import ScatteringFeatures, scattered

NUM_EXAMPLES = 300
TASK = next(task for task in TASKS if task.prefix == os.environ["BENCHMARK_TASK"])


def data() -> Data:
    """The same features, of a few images."""
    whole = datasets.mnist() if TASK.prefix == "mnist" else datasets.cifar10()
    assert whole.evaluate is not None
    size, _, *colours = whole.train.shapes[0]
    features = (
        ScatteringFeatures(size=size, colours=3, fold_mirrored=True)
        if colours
        else ScatteringFeatures(size=size, num_groups=27)
    )
    few = Data(train=whole.train.first(NUM_EXAMPLES), evaluate=whole.evaluate.first(NUM_EXAMPLES))
    return scattered(few, features)


job = replace(load_job(TASK.job), data=data, global_batch_size=30, epochs=0.3)
