"""Loss spikes: real loss curves, spikes injected into them by a seeded script, and what the watch says.

Curves come from training here and now (:func:`train_curve`): a network on MNIST or a language model on tinyshakespeare,
one loss a step. A spike raises the loss by its peak, which then decays (a passing spike) or stays (a lasting one). Its
size is in units of what the curve does around it, so that it is a spike of that curve and not of another.
"""

from __future__ import annotations

import gzip
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonai.operations.watch.rise import RiseWatch

Floats = NDArray[np.float64]

SETUPS: tuple[tuple[str, str, int], ...] = (
    ("network on MNIST", "sgd", 32), ("network on MNIST", "adam", 128), ("network on MNIST", "cosine", 64),
    ("logistic on MNIST", "sgd", 64), ("language model", "adam", 64), ("language model", "sgd", 128),
    ("language model", "cosine", 32),
)  # fmt: skip
"""Model, optimiser, examples a step."""
CONTEXT = 8
"""Letters that the language model sees."""
FIRST_STEP = 300
"""Before it a curve falls steeply: nobody would call a bump there a spike."""
LOCAL_STEPS = 100
PEAK_DEVIATIONS = (5.0, 20.0)
PEAK_OF_LOSS = (0.3, 3.0)
"""A spike's peak is the larger of so many deviations of the hundred losses before it and that share of their mean."""
DECAY_STEPS = (5.0, 50.0)
LASTING_SHARE = 0.25
SPACING_STEPS = 600
FOUND_WITHIN_STEPS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Spike:
    """Where a spike begins, and by how much it raises the loss at and after that step."""

    step: int
    peak: float
    decay_steps: float
    """Infinite: it lasts."""


def train_curve(folder: Path, setup: tuple[str, str, int], *, steps: int, seed: int) -> Floats:
    """The training loss of each step of a small model."""
    import torch

    kind, optimiser, batch = setup
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    draw, network = _task(kind, folder, batch, generator)
    rule = _rule(optimiser, network)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(rule, steps) if optimiser == "cosine" else None
    losses = np.empty(steps)
    for step in range(steps):
        inputs, targets = draw()
        loss: Any = torch.nn.functional.cross_entropy(network(inputs), targets)
        rule.zero_grad()
        loss.backward()
        rule.step()
        losses[step] = loss.item()
        if schedule is not None:
            schedule.step()
    return losses


def _rule(optimiser: str, network: Any) -> Any:
    import torch

    if optimiser == "adam":
        return torch.optim.Adam(network.parameters(), lr=1e-3)
    if optimiser == "cosine":
        return torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    return torch.optim.SGD(network.parameters(), lr=0.1)


def _task(kind: str, folder: Path, batch: int, generator: Any) -> tuple[Any, Any]:
    import torch
    from torch import nn

    if kind == "language model":
        text = np.frombuffer((folder / "tinyshakespeare" / "input.txt").read_bytes(), np.uint8)
        letters, numbers = np.unique(text, return_inverse=True)
        ids = torch.from_numpy(numbers.astype(np.int64))

        def sentences() -> tuple[Any, Any]:
            at = torch.randint(0, len(ids) - CONTEXT - 1, (batch,), generator=generator)
            return ids[at[:, None] + torch.arange(CONTEXT)], ids[at + CONTEXT]

        embedding = nn.Sequential(nn.Embedding(len(letters), 16), nn.Flatten())
        return sentences, nn.Sequential(
            embedding, nn.Linear(16 * CONTEXT, 128), nn.ReLU(), nn.Linear(128, len(letters))
        )
    images = _idx(folder / "mnist" / "train-images-idx3-ubyte.gz", 16).reshape(-1, 784)
    pixels = torch.from_numpy((images.astype(np.float32) / 255.0 - 0.13) / 0.31)
    labels = torch.from_numpy(_idx(folder / "mnist" / "train-labels-idx1-ubyte.gz", 8).astype(np.int64))

    def pictures() -> tuple[Any, Any]:
        at = torch.randint(0, len(labels), (batch,), generator=generator)
        return pixels[at], labels[at]

    if kind == "logistic on MNIST":
        return pictures, nn.Linear(784, 10)
    return pictures, nn.Sequential(nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10))


def _idx(path: Path, head_bytes: int) -> NDArray[np.uint8]:
    return np.frombuffer(gzip.decompress(path.read_bytes()), np.uint8, offset=head_bytes)


def draw_spikes(losses: Floats, *, count: int, random: np.random.Generator) -> list[Spike]:
    """Places and sizes of spikes, in order, apart from each other."""
    places = np.sort(random.permutation((len(losses) - FIRST_STEP) // SPACING_STEPS)[:count])
    found = []
    for place in places.tolist():
        step = FIRST_STEP + place * SPACING_STEPS + int(random.integers(SPACING_STEPS // 2))
        before = losses[step - LOCAL_STEPS : step]
        peak = max(
            random.uniform(*PEAK_DEVIATIONS) * before.std(), random.uniform(*PEAK_OF_LOSS) * before.mean()
        )
        lasts = random.random() < LASTING_SHARE
        decay = math.inf if lasts else float(random.uniform(*DECAY_STEPS))
        found.append(Spike(step=step, peak=float(peak), decay_steps=decay))
    return found


def injected(losses: Floats, spike: Spike) -> Floats:
    """The curve up to the end of the spike's surroundings, with it."""
    end = min(len(losses), spike.step + SPACING_STEPS)
    raised = losses[:end].copy()
    after = np.arange(end - spike.step)
    raised[spike.step :] += spike.peak * (
        1.0 if math.isinf(spike.decay_steps) else np.exp(-after / spike.decay_steps)
    )
    return raised


def alarms(losses: Sequence[float] | Floats) -> Iterator[int]:
    """Steps at which the watch opens an alarm."""
    watch = RiseWatch("loss_spike", "the loss", lasting_kind="divergence")
    for step, loss in enumerate(losses):
        for found in watch.update(step, float(loss)):
            if not found.over and found.kind == "loss_spike":
                yield step


def is_found(losses: Floats, spike: Spike) -> bool:
    """Whether an alarm opens within the steps after the spike's begin."""
    last = spike.step + FOUND_WITHIN_STEPS
    return any(spike.step <= step <= last for step in alarms(injected(losses, spike)[: last + 1]))
