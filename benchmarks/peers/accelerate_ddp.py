"""The same training on Hugging Face Accelerate, started by torchrun (its own launcher asks for MPI on a CPU).

Run as ``torchrun --standalone --nproc-per-node 2 -m benchmarks.peers.accelerate_ddp``; its words are those of
:mod:`benchmarks.peers.report`.
"""

from __future__ import annotations

import time

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.peers.mnist_tensors import accuracy, tensor_dataset
from benchmarks.peers.report import Arguments, Reporter, read_arguments
from benchmarks.workloads.conv_net import BATCH_PER_WORKER, LEARNING_RATE, MOMENTUM, network


def train(arguments: Arguments) -> None:
    """Train for ``steps`` optimiser steps; the main process then measures the accuracy."""
    accelerator = Accelerator(cpu=True, mixed_precision="no")
    set_seed(arguments.seed)
    data = tensor_dataset(arguments.data, "train")
    module = network()
    plain_optimizer = torch.optim.SGD(module.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    plain_loader = DataLoader(data, batch_size=BATCH_PER_WORKER, shuffle=True, num_workers=0)
    model, optimizer, loader = accelerator.prepare(module, plain_optimizer, plain_loader)
    criterion = nn.CrossEntropyLoss()
    reporter = Reporter(arguments.report, rank=accelerator.process_index)
    started, step, epoch = time.perf_counter(), 0, 0
    model.train()
    while step < arguments.steps:
        loader.set_epoch(epoch)
        epoch += 1
        for images, labels in loader:
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            accelerator.backward(loss)
            optimizer.step()
            step += 1
            reporter.step(len(labels) * accelerator.num_processes)
            if step == arguments.steps:
                break
    seconds = time.perf_counter() - started
    if arguments.evaluate and accelerator.is_main_process:
        test = tensor_dataset(arguments.data, "test")
        reporter.epoch(epoch, seconds=seconds, accuracy=accuracy(accelerator.unwrap_model(model), test))
    reporter.close()
    accelerator.end_training()


if __name__ == "__main__":
    train(read_arguments())
