"""The four models that private training is timed on, with made-up data, and the ordinary step; nothing but torch."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

ModelName = Literal["mlp", "mnist_cnn", "cifar_cnn", "transformer"]

VOCABULARY, POSITIONS, CLASSES = 1000, 64, 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """One model and what it is fed.

    Args:
        build: a fresh model.
        batch: examples of a step (expected, where they are sampled).
        units: examples of the data set; a step takes ``batch`` of them, at random.
        draw: makes so many examples.
        optimizer: which one both the private and the ordinary step use.
    """

    build: Callable[[], nn.Module]
    batch: int
    units: int
    draw: Callable[[int], Tensor]
    optimizer: Literal["sgd", "adam"]


class Attention(nn.Module):
    """Self-attention with four heads, from linear layers and torch's scaled dot product."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.project_in = nn.Linear(width, 3 * width)
        self.project_out = nn.Linear(width, width)

    def forward(self, rows_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        parts = self.project_in(rows_BTD).unflatten(2, (3, 4, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        merged: Tensor = self.project_out(mixed.transpose(1, 2).flatten(2))
        return merged


class Block(nn.Module):
    """A transformer block, normalised before each part."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first_norm = nn.LayerNorm(width)
        self.attention = Attention(width)
        self.second_norm = nn.LayerNorm(width)
        self.wide = nn.Linear(width, 4 * width)
        self.narrow = nn.Linear(4 * width, width)

    def forward(self, rows_BTD: Tensor) -> Tensor:
        """(B, T, D) to (B, T, D)."""
        rows_BTD = rows_BTD + self.attention(self.first_norm(rows_BTD))
        grown: Tensor = self.narrow(functional.gelu(self.wide(self.second_norm(rows_BTD))))
        return rows_BTD + grown


class Transformer(nn.Module):
    """Two blocks between an embedding with fixed positions and a linear head on the mean."""

    positions: Tensor

    def __init__(self, width: int = 128) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, CLASSES)
        steps = torch.arange(POSITIONS)[:, None] * torch.exp(
            torch.arange(0, width, 2) * (-math.log(1e4) / width)
        )
        self.register_buffer("positions", torch.cat([steps.sin(), steps.cos()], dim=1))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """(B, T) token numbers to (B, classes)."""
        rows_BTD = self.blocks(self.embedding(tokens_BT) + self.positions)
        scores: Tensor = self.head(self.norm(rows_BTD).mean(1))
        return scores


def mlp() -> nn.Module:
    """784-512-512-10."""
    return nn.Sequential(
        nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, CLASSES)
    )


def mnist_cnn() -> nn.Module:
    """The convolutional network of Opacus's MNIST example."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 8, 2, padding=3), nn.ReLU(), nn.MaxPool2d(2, 1),
        nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.MaxPool2d(2, 1),
        nn.Flatten(), nn.Linear(32 * 4 * 4, 32), nn.ReLU(), nn.Linear(32, CLASSES),
    )  # fmt: skip


def cifar_cnn() -> nn.Module:
    """Three convolutions of 32, 64 and 128 channels, each halved by pooling, and a linear head."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(64, 128, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(128 * 4 * 4, CLASSES),
    )  # fmt: skip


WORK: dict[ModelName, Work] = {
    "mlp": Work(build=mlp, batch=1024, units=60_000, draw=lambda n: torch.randn(n, 784), optimizer="sgd"),
    "mnist_cnn": Work(
        build=mnist_cnn, batch=256, units=60_000, draw=lambda n: torch.randn(n, 1, 28, 28), optimizer="sgd"
    ),
    "cifar_cnn": Work(
        build=cifar_cnn, batch=256, units=50_000, draw=lambda n: torch.randn(n, 3, 32, 32), optimizer="sgd"
    ),
    "transformer": Work(
        build=Transformer, batch=256, units=20_000,
        draw=lambda n: torch.randint(0, VOCABULARY, (n, POSITIONS)), optimizer="adam",
    ),
}  # fmt: skip


class Ordinary:
    """The step that a private one is compared with: a random batch, forward, backward, optimiser.

    Args:
        name: of the model.
        units: examples of the data set; 0 for as many as the model's own.
    """

    def __init__(self, name: ModelName, units: int = 0) -> None:
        self.work = WORK[name]
        self.generator = torch.Generator().manual_seed(1)
        torch.manual_seed(1)
        self.model = self.work.build()
        self.optimizer = optimizer_of(self.work, self.model)
        self.examples = self.work.draw(units or self.work.units)
        self.labels = torch.randint(0, CLASSES, (len(self.examples),))

    def step(self, piece: int = 0) -> None:
        """One step; with ``piece`` so many examples go through the model at a time."""
        batch = self.work.batch
        chosen = torch.randint(len(self.examples), (batch,), generator=self.generator)
        self.optimizer.zero_grad()
        for start in range(0, batch, piece or batch):
            part = chosen[start : start + (piece or batch)]
            loss = functional.cross_entropy(self.model(self.examples[part]), self.labels[part])
            (loss * (len(part) / batch)).backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()


def optimizer_of(work: Work, model: nn.Module) -> torch.optim.Optimizer:
    """The model's optimiser, the same for all."""
    if work.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=0.01)
    return torch.optim.Adam(model.parameters(), lr=1e-4, fused=True)


def alternate(
    steps: dict[str, Callable[[], None]], *, rounds: int, limit_seconds: float
) -> dict[str, list[float]]:
    """Seconds of every step, taken in turns until the rounds are done or the time is up (three rounds at least)."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    ends = time.perf_counter() + limit_seconds
    for turn in range(rounds):
        if turn >= 3 and time.perf_counter() > ends:
            break
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    return seconds


def memory_growth(step: Callable[[], None], *, steps: int) -> int:
    """Bytes by which the process's peak grows beyond what it holds now, over some steps; Linux only."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = _status_bytes("VmRSS")
    for _ in range(steps):
        step()
    return max(1, _status_bytes("VmHWM") - before)


def _status_bytes(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
