"""MNIST as a ``TensorDataset`` already normalised: the fastest thing a DataLoader can be given."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks.workloads.arrays import read_images


def tensor_dataset(folder: Path, split: str) -> TensorDataset:
    """Normalised images and labels of ``split`` (train or test); pages are shared between workers."""
    images, labels = read_images(folder, split)
    return TensorDataset(torch.from_numpy(images), torch.from_numpy(labels))


@torch.no_grad()
def accuracy(model: nn.Module, test: TensorDataset, *, batch_size: int = 250) -> float:
    """Share of ``test`` that ``model`` gets right; the model is left in training mode."""
    model.eval()
    images, labels = test.tensors
    hits = 0
    for start in range(0, len(labels), batch_size):
        predicted = model(images[start : start + batch_size]).argmax(dim=1)
        hits += int((predicted == labels[start : start + batch_size]).sum())
    model.train()
    return hits / len(labels)
