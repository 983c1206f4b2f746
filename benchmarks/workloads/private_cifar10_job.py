"""CIFAR-10 with differential privacy: a linear model on fixed wavelet features, mirrored pairs folded.

Chosen on 5,000 held-out training images (``benchmarks.private_accuracy_tried``); the test set only measures.
"""

from __future__ import annotations

from torch import nn

from leptonai import SGD, Checkpoints, Data, Evaluate, Privacy, Speed, TrainJob, datasets
from leptonai.training.pytorch.scattering_features import ScatteringFeatures, scattered

FEATURES = ScatteringFeatures(size=32, colours=3, fold_mirrored=True)


def network() -> nn.Module:
    """One linear layer, 77,770 parameters, that starts at zero so that no logit is noise."""
    layer = nn.Linear(FEATURES.num_features, 10)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def data() -> Data:
    """Features of 7,776 numbers, computed once a machine."""
    return scattered(datasets.cifar10(), FEATURES)


job = TrainJob(
    model=network,
    data=data,
    loss="cross_entropy",
    optimizer=SGD(lr=0.034, momentum=0.9),
    epochs=40,
    global_batch_size=5000,
    precision="float32",
    privacy=Privacy(epsilon=3.0, delta=1e-5, clip=7.7),
    evaluate=Evaluate(every_epochs=0, batch_size=1000),
    checkpoints=Checkpoints(every_seconds=600),
    speed=Speed(compile="off"),
)
