"""The same training on Lightning Fabric, which starts its own second process.

Run as ``python -m benchmarks.peers.fabric_ddp``; its words are those of :mod:`benchmarks.peers.report`.
"""

from __future__ import annotations

import time

import torch
from lightning_fabric import Fabric  # type: ignore[import-not-found,unused-ignore]
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.peers.mnist_tensors import accuracy, tensor_dataset
from benchmarks.peers.report import Arguments, Reporter, read_arguments
from benchmarks.workloads.conv_net import BATCH_PER_WORKER, LEARNING_RATE, MOMENTUM, network

NUM_WORKERS = 2


def train(arguments: Arguments) -> None:
    """Train for ``steps`` optimiser steps; rank 0 then measures the accuracy."""
    fabric = Fabric(accelerator="cpu", strategy="ddp", devices=NUM_WORKERS, precision="32-true")
    fabric.launch()
    fabric.seed_everything(arguments.seed)
    data = tensor_dataset(arguments.data, "train")
    module = network()
    plain_optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    model, optimizer = fabric.setup(module, plain_optimizer)
    loader = fabric.setup_dataloaders(
        DataLoader(data, batch_size=BATCH_PER_WORKER, shuffle=True, num_workers=0)
    )
    criterion = nn.CrossEntropyLoss()
    reporter = Reporter(arguments.report, rank=fabric.global_rank)
    started, step, epoch = time.perf_counter(), 0, 0
    model.train()
    while step < arguments.steps:
        loader.sampler.set_epoch(epoch)
        epoch += 1
        for images, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            fabric.backward(loss)
            optimizer.step()
            step += 1
            reporter.step(len(labels) * fabric.world_size)
            if step == arguments.steps:
                break
    seconds = time.perf_counter() - started
    if arguments.evaluate and fabric.global_rank == 0:
        test = tensor_dataset(arguments.data, "test")
        reporter.epoch(epoch, seconds=seconds, accuracy=accuracy(model.module, test))
    reporter.close()


if __name__ == "__main__":
    train(read_arguments())
