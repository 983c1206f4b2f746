"""One process's part in :mod:`benchmarks.private_training`: our private step beside the ordinary one."""

from __future__ import annotations

import argparse
import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast, get_args

import numpy as np
import torch
from torch.nn import functional

from benchmarks.private_layers import relative_errors
from benchmarks.private_training_models import (
    CLASSES,
    WORK,
    ModelName,
    Ordinary,
    alternate,
    memory_growth,
    optimizer_of,
)  # fmt: skip
from leptonai.security.privacy.noise.gaussian import NormalSource
from leptonai.security.privacy.pytorch.clipper import Clipper
from leptonai.security.privacy.pytorch.physical import PhysicalBatch
from leptonai.security.privacy.sampling import PoissonSampler

CLIP, NOISE_MULTIPLIER = 1.0, 1.0
WARM_STEPS = 24
"""Enough for the size of a physical batch to be found."""


class Private:
    """A private step: Poisson sampling, forward, backward, clipping, cryptographic noise, optimiser.

    Args:
        name: of the model.
        beside: whose data it is fed; None: data of its own.
        units: examples of its own data; 0 for as many as the model's.
    """

    def __init__(self, name: ModelName, *, beside: Ordinary | None = None, units: int = 0) -> None:
        self._work = WORK[name]
        torch.manual_seed(1)
        self._model = self._work.build()
        self._optimizer = optimizer_of(self._work, self._model)
        if beside is None:
            self._examples = self._work.draw(units or self._work.units)
            self._labels = torch.randint(0, CLASSES, (len(self._examples),))
        else:
            self._examples, self._labels = beside.examples, beside.labels
        self._clipper = Clipper(self._model, clip=CLIP)
        for slot in self._clipper.layout:
            slot.parameter.grad = self._clipper.sum_P[slot.place].view(slot.parameter.shape)
        rate = self._work.batch / len(self._examples)
        self._sampler = PoissonSampler(
            secrets.token_bytes(32), num_units=len(self._examples), sample_rate=rate
        )
        self._noise = NormalSource()
        self.physical = PhysicalBatch()
        self._step = 0

    def step(self) -> None:
        """One step."""
        chosen = torch.from_numpy(self._sampler.units(self._step))
        examples, labels = self._examples[chosen], self._labels[chosen]
        clipper = self._clipper
        clipper.zero()
        with self.physical.step(len(chosen)) as pieces:
            for piece in pieces:
                clipper.add(self._loss(examples[piece], labels[piece]), piece.stop - piece.start)
        self._noise.add(clipper.sum_P.numpy(), CLIP * NOISE_MULTIPLIER)
        clipper.sum_P.mul_(1.0 / self._work.batch)
        self._optimizer.step()
        self._step += 1

    def _loss(self, examples: torch.Tensor, labels: torch.Tensor) -> Callable[[], torch.Tensor]:
        return lambda: functional.cross_entropy(self._model(examples), labels)


def steps(name: ModelName, rounds: int, quick: bool) -> dict[str, object]:
    """Seconds of both steps, taken in turns."""
    ordinary = Ordinary(name, 2 * WORK[name].batch if quick else 0)
    private = Private(name, beside=ordinary)
    both = {"ordinary": ordinary.step, "ours": private.step}
    alternate(both, rounds=1 if quick else WARM_STEPS, limit_seconds=300.0)
    piece = private.physical.size or 0
    every = {**both, "ordinary in pieces": lambda: ordinary.step(piece)}
    found = alternate(every, rounds=1 if quick else rounds, limit_seconds=300.0)
    return {**found, "physical": float(piece)}


def memory(name: ModelName, who: str, quick: bool) -> dict[str, object]:
    """Bytes by which the peak grows while it trains, all that is tried at first included."""
    units = 2 * WORK[name].batch if quick else 0
    step = Private(name, units=units).step if who == "ours" else Ordinary(name, units).step
    return {"growth_bytes": memory_growth(step, steps=1 if quick else WARM_STEPS)}


def errors() -> dict[str, object]:
    """The largest relative error of the clipped sum over every layer type."""
    found = relative_errors()
    return {"largest_error": max(found.values()), "num_layer_types": len(found)}


def noise(quick: bool) -> dict[str, object]:
    """Millions of normals added in a second of one core."""
    source, target = NormalSource(), np.zeros(1 << 20, np.float32)
    rates = []
    for _ in range(2 if quick else 50):
        began = time.thread_time()
        source.add(target, 1.0)
        rates.append(target.size / (time.thread_time() - began) / 1e6)
    return {"millions": sorted(rates)[len(rates) // 2]}


def main() -> None:
    """Do one part and write the report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=("steps", "memory-ours", "memory-ordinary", "errors", "noise"))
    parser.add_argument("--model", choices=get_args(ModelName), default="mlp")
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true")
    words = parser.parse_args()
    torch.set_num_threads(1)
    model = cast(ModelName, words.model)
    parts: dict[str, Callable[[], dict[str, object]]] = {
        "steps": lambda: steps(model, words.rounds, words.quick),
        "memory-ours": lambda: memory(model, "ours", words.quick),
        "memory-ordinary": lambda: memory(model, "ordinary", words.quick),
        "errors": errors,
        "noise": lambda: noise(words.quick),
    }
    words.report.write_text(json.dumps(parts[words.part]()))


if __name__ == "__main__":
    main()
