"""MNIST with differential privacy: one example more or less hardly changes what the trained model shows.

A linear model on fixed wavelet features (Tramer & Boneh 2021): the features are formulas, so they cost no privacy,
and a linear model learns fast enough that four hundred noisy steps are plenty. The recipe was chosen on a held-out
part of the training set; the test set only measures.
"""

from __future__ import annotations

from torch import nn

from leptonai import SGD, Checkpoints, Data, Evaluate, Privacy, Speed, TrainJob, datasets
from leptonai.training.pytorch.scattering_features import ScatteringFeatures, scattered

FEATURES = ScatteringFeatures(size=28, num_groups=27)


def network() -> nn.Module:
    """One linear layer, 39,700 parameters, that starts at zero so that no logit is noise."""
    layer = nn.Linear(FEATURES.num_features, 10)
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def data() -> Data:
    """Scattering features of the digits, computed once a machine and then read from the cache."""
    return scattered(datasets.mnist(), FEATURES)


job = TrainJob(
    model=network,
    data=data,
    loss="cross_entropy",
    optimizer=SGD(lr=0.25, momentum=0.9),
    epochs=40,
    global_batch_size=6000,
    precision="float32",
    privacy=Privacy(epsilon=2.93, delta=1e-5, clip=1.9),
    evaluate=Evaluate(every_epochs=0, batch_size=1000),
    checkpoints=Checkpoints(every_seconds=60),
    speed=Speed(compile="off"),
)
