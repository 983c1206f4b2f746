"""How recipes of ``benchmarks.private_accuracy`` are compared: on held-out training images, never the test set.

``python -m benchmarks.private_accuracy_search cifar10 --lr 0.03 --clip 8 --epochs 20 [--steps-per-epoch 10]``

A linear model's gradient for one example has the norm |dloss/dlogits| * sqrt(|features|^2 + 1), so private descent
takes a dozen lines and one pass over the matrix a step. To be quick, the steps take tenths of the data in turn and
noise from an ordinary generator; its size is that of Poisson sampling at the same rate. Good for comparing recipes,
not for a promise: that is what ``lepton train`` keeps.

Letters: B examples, D features, K = 10 classes.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from benchmarks.private_accuracy import TASKS
from leptonai.launch.jobs import load_job
from leptonai.security.privacy.plan import plan_privately
from leptonai.training.data.dataset import Data

HELD_OUT = {"mnist": 6000, "cifar10": 5000}
NUM_CLASSES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """What is compared."""

    lr: float
    clip: float
    noise_multiplier: float
    epochs: int
    steps_per_epoch: int
    momentum: float = 0.9
    seed: int = 0


def split(data: Data, *, held_out: int) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
    """(features BD, labels B) to train on and to judge by: all but ``held_out`` examples of one fixed order."""
    order = np.random.Generator(np.random.Philox(123)).permutation(len(data.train))
    parts = []
    for chosen in (order[held_out:], order[:held_out]):
        features, labels = data.train.take(chosen)
        parts.append((torch.from_numpy(features), torch.from_numpy(labels)))
    return tuple(parts)


def train(features_BD: torch.Tensor, labels_B: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Weights (D + 1, K), the bias last, after private descent from zero."""
    generator = torch.Generator().manual_seed(recipe.seed)
    batch = len(features_BD) // recipe.steps_per_epoch
    weights = torch.zeros(features_BD.shape[1] + 1, NUM_CLASSES)
    movement = torch.zeros_like(weights)
    for step in range(recipe.epochs * recipe.steps_per_epoch):
        start = step % recipe.steps_per_epoch * batch
        inputs, labels = features_BD[start : start + batch], labels_B[start : start + batch]
        errors_BK = logits(inputs, weights).softmax(1) - functional.one_hot(labels, NUM_CLASSES)
        norms_B = errors_BK.norm(dim=1) * (inputs.square().sum(1) + 1).sqrt()
        errors_BK *= (recipe.clip / norms_B.clamp(min=1e-12)).clamp(max=1)[:, None]
        gradient = torch.cat([inputs.T @ errors_BK, errors_BK.sum(0, keepdim=True)])
        noise = torch.randn(gradient.shape, generator=generator) * recipe.noise_multiplier * recipe.clip
        movement = recipe.momentum * movement + (gradient + noise) / batch
        weights -= recipe.lr * movement
    return weights


def logits(features_BD: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """(B, K)."""
    return features_BD @ weights[:-1] + weights[-1]


def main(argv: Sequence[str] | None = None) -> int:
    """Train one recipe and print its held-out accuracy as a JSON line."""
    tasks = {task.prefix: task for task in TASKS}
    parser = argparse.ArgumentParser(prog="python -m benchmarks.private_accuracy_search")
    parser.add_argument("task", choices=tasks)
    parser.add_argument("--lr", type=float, required=True)
    parser.add_argument("--clip", type=float, required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--steps-per-epoch", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args(argv)
    job = load_job(tasks[words.task].job)
    assert job.privacy is not None
    (inputs, labels), (held_inputs, held_labels) = split(job.load_data(), held_out=HELD_OUT[words.task])
    plan = plan_privately(
        job.privacy,
        num_units=len(labels),
        batch_size=len(labels) // words.steps_per_epoch,
        steps=words.epochs * words.steps_per_epoch,
        num_parameters=NUM_CLASSES * (inputs.shape[1] + 1),
    )
    recipe = Recipe(
        lr=words.lr,
        clip=words.clip,
        noise_multiplier=plan.gradient_noise_multiplier,
        epochs=words.epochs,
        steps_per_epoch=words.steps_per_epoch,
        seed=words.seed,
    )
    weights = train(inputs, labels, recipe)
    right = logits(held_inputs, weights).argmax(1) == held_labels
    found = {"noise_multiplier": recipe.noise_multiplier, "held_out_accuracy": float(right.float().mean())}
    sys.stdout.write(json.dumps({**vars(words), **found}) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
