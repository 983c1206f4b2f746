"""MNIST to 99 % in a plain PyTorch loop, as its quickstart has it: DataLoader, Adam 1e-3, batch 128.

One process with PyTorch's own choice of threads. The network is that of ``examples/mnist``; the data comes as
a ready ``TensorDataset``, which is faster than decoding every image as the tutorial does.
"""

from __future__ import annotations

import time

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.peers.mnist_tensors import accuracy, tensor_dataset
from benchmarks.peers.report import Arguments, Reporter, read_arguments


def network() -> nn.Module:
    """The layers of ``examples/mnist``, written out."""
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


def train(arguments: Arguments) -> None:
    """Train until the test accuracy measured after an epoch is high enough, or ``epochs`` are over."""
    torch.manual_seed(arguments.seed)
    loader = DataLoader(tensor_dataset(arguments.data, "train"), batch_size=128, shuffle=True)
    test = tensor_dataset(arguments.data, "test")
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    criterion = nn.CrossEntropyLoss()
    reporter = Reporter(arguments.report)
    model.train()
    for epoch in range(1, arguments.epochs + 1):
        started = time.perf_counter()
        for images, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
        seconds = time.perf_counter() - started
        measured = accuracy(model, test)
        reporter.epoch(epoch, seconds=seconds, accuracy=measured)
        if measured >= arguments.accuracy:
            break
    reporter.close()


if __name__ == "__main__":
    train(read_arguments())
