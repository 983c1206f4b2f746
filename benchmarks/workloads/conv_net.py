"""The workload of ``sync_training``: one network and one recipe for every contestant.

The network is that of PyTorch's own MNIST example without its dropout, so that nothing but the order of
additions differs between contestants; 1.2 million parameters, 72 MFLOP an example with the backward pass.
Only torch is imported here: peers run in an environment without this project.
"""

from __future__ import annotations

from torch import nn

BATCH_PER_WORKER = 128
LEARNING_RATE = 0.02
MOMENTUM = 0.9


def network() -> nn.Module:
    """Two convolutions, one pooling, two dense layers: 1x28x28 images to 10 logits.

    >>> sum(parameter.numel() for parameter in network().parameters())
    1199882
    """
    return nn.Sequential(
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(9216, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )
