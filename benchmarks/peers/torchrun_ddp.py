"""Synchronous data parallel training by hand: DistributedDataParallel over gloo, as in its tutorial.

Run as ``torchrun --standalone --nproc-per-node 2 -m benchmarks.peers.torchrun_ddp``; its words are those of
:mod:`benchmarks.peers.report`.
"""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from benchmarks.peers.mnist_tensors import accuracy, tensor_dataset
from benchmarks.peers.report import Arguments, Reporter, read_arguments
from benchmarks.workloads.conv_net import BATCH_PER_WORKER, LEARNING_RATE, MOMENTUM, network


def train(arguments: Arguments) -> None:
    """Train for ``steps`` optimiser steps; rank 0 then measures the accuracy."""
    rank, num_workers = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(arguments.seed)
    data = tensor_dataset(arguments.data, "train")
    sampler: DistributedSampler[Any] = DistributedSampler(
        data, num_replicas=num_workers, rank=rank, shuffle=True, seed=arguments.seed
    )
    loader = DataLoader(data, batch_size=BATCH_PER_WORKER, sampler=sampler, num_workers=0)
    model = DistributedDataParallel(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    criterion = nn.CrossEntropyLoss()
    reporter = Reporter(arguments.report, rank=rank)
    started, step, epoch = time.perf_counter(), 0, 0
    model.train()  # type: ignore[no-untyped-call]
    while step < arguments.steps:
        sampler.set_epoch(epoch)
        epoch += 1
        for images, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            step += 1
            reporter.step(len(labels) * num_workers)
            if step == arguments.steps:
                break
    seconds = time.perf_counter() - started
    if arguments.evaluate and rank == 0:
        test = tensor_dataset(arguments.data, "test")
        reporter.epoch(epoch, seconds=seconds, accuracy=accuracy(model.module, test))
    reporter.close()


def main() -> None:
    """Join the others, train, leave."""
    dist.init_process_group("gloo")
    train(read_arguments())
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
