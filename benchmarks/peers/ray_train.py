"""The same training on Ray Train's ``TorchTrainer`` with two CPU workers.

Run as ``python -m benchmarks.peers.ray_train``; its words are those of :mod:`benchmarks.peers.report`. Ray
lives and ends with this process; usage reports, dashboard and listeners off loopback are switched off.
"""

from __future__ import annotations

import dataclasses
import os
import secrets
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from benchmarks.peers.mnist_tensors import accuracy, tensor_dataset
from benchmarks.peers.report import Arguments, Reporter, read_arguments
from benchmarks.workloads.conv_net import BATCH_PER_WORKER, LEARNING_RATE, MOMENTUM, network

NUM_WORKERS = 2


def train(config: dict[str, Any]) -> None:
    """What each Ray worker runs: ``steps`` optimiser steps; rank 0 then measures the accuracy."""
    import ray.train
    import ray.train.torch

    arguments = Arguments(**config)
    context = ray.train.get_context()
    rank, num_workers = context.get_world_rank(), context.get_world_size()
    torch.manual_seed(arguments.seed)
    data = tensor_dataset(arguments.data, "train")
    loader = DataLoader(data, batch_size=BATCH_PER_WORKER, shuffle=True, num_workers=0)
    loader = ray.train.torch.prepare_data_loader(loader)
    model = ray.train.torch.prepare_model(network())
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, momentum=MOMENTUM)
    criterion = nn.CrossEntropyLoss()
    reporter = Reporter(arguments.report, rank=rank)
    started, step, epoch = time.perf_counter(), 0, 0
    model.train()
    while step < arguments.steps:
        if isinstance(loader.sampler, DistributedSampler):
            loader.sampler.set_epoch(epoch)
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
    """Start a Ray of our own on loopback, train on it, end it."""
    arguments = read_arguments()
    os.environ.update(
        RAY_USAGE_STATS_ENABLED="0",
        RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0",
        RAY_AUTH_MODE="token",
        RAY_AUTH_TOKEN=secrets.token_hex(32),
    )
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer

    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        ray.init(
            num_cpus=NUM_WORKERS + 1,
            include_dashboard=False,
            log_to_driver=False,
            _node_ip_address="127.0.0.1",
            _temp_dir=folder,
        )
        try:
            trainer = TorchTrainer(
                train,
                train_loop_config=dataclasses.asdict(arguments),
                torch_config=TorchConfig(backend="gloo"),
                scaling_config=ScalingConfig(num_workers=NUM_WORKERS, resources_per_worker={"CPU": 1}),
                run_config=RunConfig(storage_path=str(Path(folder) / "results")),
            )
            trainer.fit()
        finally:
            ray.shutdown()


if __name__ == "__main__":
    main()
