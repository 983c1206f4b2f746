"""Opacus's private step in each of its modes beside the ordinary one, as its own examples write it.

Batches are drawn by index from tensors in memory for all alike, without Opacus's loader, which is slower; noise
comes from torch's generator, not from a cryptographic one. Both are to its advantage.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast, get_args

import torch
from opacus import PrivacyEngine  # type: ignore[import-not-found]
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.private_training_models import WORK, ModelName, Ordinary, alternate, optimizer_of

MODES = ("ghost", "hooks", "functorch", "ew")
MODE_SECONDS = 60.0
HOPELESS = 20.0
"""A mode that takes this many ordinary steps for one is timed for three steps only."""


def private_step(name: ModelName, mode: str, ordinary: Ordinary) -> Callable[[], None]:
    """The step of one mode, on the ordinary step's data."""
    work = WORK[name]
    torch.manual_seed(1)
    model: Any = work.build()
    optimizer: Any = optimizer_of(work, model)
    criterion: Any = nn.CrossEntropyLoss()
    data = TensorDataset(ordinary.examples, ordinary.labels)
    made = PrivacyEngine().make_private(
        module=model, optimizer=optimizer, criterion=criterion,
        data_loader=DataLoader(data, batch_size=work.batch), noise_multiplier=1.0, max_grad_norm=1.0,
        poisson_sampling=False, grad_sample_mode=mode,
    )  # fmt: skip
    model, optimizer, *rest = made
    if mode == "ghost":
        criterion = rest[0]
    rate = work.batch / len(ordinary.examples)

    def step() -> None:
        taken = torch.rand(len(ordinary.examples), generator=ordinary.generator) < rate
        chosen = torch.nonzero(taken).flatten()
        optimizer.zero_grad()
        criterion(model(ordinary.examples[chosen]), ordinary.labels[chosen]).backward()
        optimizer.step()

    return step


def main() -> None:
    """Time every mode that works and write the report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", choices=get_args(ModelName), required=True)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--quick", action="store_true")
    words = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    name = cast(ModelName, words.model)
    ordinary = Ordinary(name, 2 * WORK[name].batch if words.quick else 0)
    report: dict[str, Any] = {"ordinary": [], "failed": {}}
    for mode in MODES[:1] if words.quick else MODES:
        try:
            both = {"ordinary": ordinary.step, mode: private_step(name, mode, ordinary)}
            warm = alternate(both, rounds=1 if words.quick else 2, limit_seconds=MODE_SECONDS)
            hopeless = min(warm[mode]) > HOPELESS * min(warm["ordinary"])
            rounds = 1 if words.quick else 3 if hopeless else words.rounds
            found = alternate(both, rounds=rounds, limit_seconds=MODE_SECONDS)
        except Exception as error:  # a mode that cannot run this model is reported, not fatal
            report["failed"][mode] = (
                f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
            )
            continue
        report[mode] = found[mode]
        report[f"ordinary beside {mode}"] = found["ordinary"]
        report["ordinary"] += found["ordinary"]
    words.report.write_text(json.dumps(report))


if __name__ == "__main__":
    main()
