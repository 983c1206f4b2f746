"""MNIST to more than 99 % in two and a half epochs.

The recipe was chosen on held-out parts of the training set; the test set only measures.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from leptonai import Adam, Checkpoints, Cosine, Data, Evaluate, Speed, TrainJob, augment, datasets

QUARTER = 117
"""Steps in a quarter of an epoch: 60,000 images in batches of 128."""


def network() -> nn.Module:
    """A small LeNet: 1x28x28 images to 10 logits, 73,594 parameters.

    Pooling before the ReLU computes the same function as the usual order, on a quarter of the values.
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
    """Training images moved by up to one pixel; all images scaled to mean 0 and deviation 1."""
    return datasets.mnist(
        augment=(augment.RandomShift(pixels=1),),
        prepare=(augment.Scale(mean=0.1307, std=0.3081), augment.AddChannel(layout="channels_first")),
    )


def smoothed_cross_entropy(outputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross entropy that asks for 91 % certainty, not 100 %."""
    return functional.cross_entropy(outputs, labels, label_smoothing=0.1)


job = TrainJob(
    model=network,
    data=data,
    loss=smoothed_cross_entropy,
    optimizer=Adam(lr=5e-3, betas=(0.9, 0.99)),
    schedule=Cosine(warmup_steps=2 * QUARTER),
    steps=10 * QUARTER,
    global_batch_size=128,
    precision="float32",
    evaluate=Evaluate(
        every_epochs=0,
        every_steps=QUARTER,
        from_step=4 * QUARTER,
        batch_size=500,
        metrics=("accuracy",),
    ),
    checkpoints=Checkpoints(every_seconds=30),
    speed=Speed(memory_format="channels_last", compile="off"),
)
