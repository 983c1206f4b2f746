"""Private trainers to audit, made of the engine's own parts: an honest one and five that break their promise.

Each step: a Poisson sample, per-example clipping, cryptographic noise, division by a public number, SGD; a small
network on made-up data. What is broken is broken where such mistakes are made in practice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from leptonai.security.privacy.accounting.accountant import calibrate
from leptonai.security.privacy.accounting.accountant import epsilon as epsilon_of
from leptonai.security.privacy.accounting.mechanisms import Charge, SampledGaussian
from leptonai.security.privacy.noise.gaussian import NormalSource
from leptonai.security.privacy.proof.trainer import Declared, Example, Floats, Units, derived_key
from leptonai.security.privacy.pytorch.clipper import Clipper
from leptonai.security.privacy.sampling import PoissonSampler

Broken = Literal[
    "noise / 10", "no clipping", "shuffled sampler", "each rank adding sigma / N", "unclipped bias"
]
BROKEN: tuple[Broken, ...] = (
    "noise / 10", "no clipping", "shuffled sampler", "each rank adding sigma / N", "unclipped bias"
)  # fmt: skip

WIDTH, HIDDEN, CLASSES = 32, 64, 4
LEARNING_RATE = 0.5
RANKS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A run: how many units (>= 1), their rate, steps, and the epsilon that it claims at ``delta``."""

    num_units: int = 3000
    sample_rate: float = 0.1
    steps: int = 100
    epsilon: float = 4.0
    delta: float = 1e-5
    clip: float = 1.0

    def charges(self, noise_multiplier: float) -> tuple[Charge, ...]:
        """What the run costs with this noise."""
        mechanism = SampledGaussian(noise_multiplier=noise_multiplier, sample_rate=self.sample_rate)
        return (Charge(mechanism=mechanism, count=self.steps),)


class EngineTrainer:
    """Satisfies :class:`~leptonai.security.privacy.proof.trainer.OpenTrainer`.

    Args:
        setting: of the run.
        noise_multiplier: None: calibrated.
        broken: how it breaks its promise; None: it does not.
        absent: units that the data lacks.
    """

    def __init__(
        self,
        setting: Setting,
        *,
        noise_multiplier: float | None = None,
        broken: Broken | None = None,
        absent: frozenset[int] = frozenset(),
    ) -> None:
        noise = noise_multiplier or calibrate(setting.charges, epsilon=setting.epsilon, delta=setting.delta)
        self._setting, self._noise, self._broken, self._absent = setting, noise, broken, absent
        self._inputs, self._targets = _data(setting.num_units)
        self._present = np.setdiff1d(np.arange(setting.num_units), sorted(absent))
        torch.manual_seed(0)
        self._model = nn.Sequential(nn.Linear(WIDTH, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, CLASSES))
        self._initial = {name: value.clone() for name, value in self._model.state_dict().items()}
        self._clipped, self._free = self._clippers(setting.clip)
        self._num_parameters = sum(each.numel() for each in self._model.parameters())
        self.reset()

    def _clippers(self, clip: float) -> tuple[Clipper, Clipper | None]:
        """The clipper of the run, and one without a limit for what a broken trainer lets through."""
        unlimited = 1e30
        if self._broken == "no clipping":
            return Clipper(self._model, clip=unlimited), None
        if self._broken != "unclipped bias":
            return Clipper(self._model, clip=clip), None
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_("bias" not in name)
        weights = Clipper(self._model, clip=clip)
        self._model.requires_grad_(True)
        return weights, Clipper(self._model, clip=unlimited)

    @property
    def declared(self) -> Declared:
        """What the honest run says of itself; the broken ones say the same."""
        return _declared(self._setting, self._noise, self._num_parameters)

    def without(self, unit: int) -> EngineTrainer:
        """The same run on data that lacks this unit."""
        return EngineTrainer(
            self._setting, noise_multiplier=self._noise, broken=self._broken, absent=self._absent | {unit}
        )

    def example(self, unit: int) -> Example:
        """The example of this unit."""
        return self._inputs[unit].copy(), self._targets[unit].copy()

    def reset(self) -> None:
        """Initial weights."""
        self._model.load_state_dict(self._initial)

    def batch(self, step: int, key: bytes) -> Units:
        """A Poisson sample; of the broken trainer, the next part of a shuffled epoch."""
        setting = self._setting
        if self._broken == "shuffled sampler":
            size = round(setting.num_units * setting.sample_rate)
            epoch, place = divmod(step, max(1, len(self._present) // size))
            order = np.random.default_rng([*derived_key(key, f"epoch {epoch}")]).permutation(self._present)
            return order[place * size : (place + 1) * size]
        sampler = PoissonSampler(
            derived_key(key, "sampling"), num_units=setting.num_units, sample_rate=setting.sample_rate
        )
        units = sampler.units(step)
        return units[~np.isin(units, sorted(self._absent))] if self._absent else units

    def clipped_sum(self, units: Units, extra: Sequence[Example] = ()) -> Floats:
        """The engine's sum, rank by rank."""
        inputs, targets = self._gather(units, extra)
        total_P = np.zeros(self._num_parameters, dtype=np.float64)
        for mine in np.array_split(np.arange(len(targets)), RANKS):
            if self._free is None:
                total_P += _summed(self._clipped, self._model, inputs[mine], targets[mine])
            else:
                total_P += self._with_free_bias(inputs[mine], targets[mine])
        with np.errstate(over="ignore"):
            return total_P.astype(np.float32)

    def _with_free_bias(self, inputs: Any, targets: Any) -> NDArray[np.float64]:
        """Weights' gradients clipped by their own norm, biases' not at all."""
        assert self._free is not None
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_("bias" not in name)
        weights_P = _summed(self._clipped, self._model, inputs, targets)
        self._model.requires_grad_(True)
        total_P = _summed(self._free, self._model, inputs, targets)
        of_weight = {slot.name: slot.place for slot in self._clipped.layout}
        for slot in self._free.layout:
            if slot.name in of_weight:
                total_P[slot.place] = weights_P[of_weight[slot.name]]
        return total_P

    def noise(self, step: int, key: bytes) -> Floats:
        """What all ranks add: the first of them adds everything."""
        scale = self._noise * self._setting.clip
        if self._broken == "noise / 10":
            scale /= 10
        total_P = np.zeros(self._num_parameters, dtype=np.float32)
        if self._broken == "each rank adding sigma / N":
            for rank in range(RANKS):
                NormalSource(derived_key(key, f"noise {step} {rank}")).add(total_P, scale / RANKS)
        else:
            NormalSource(derived_key(key, f"noise {step}")).add(total_P, scale)
        return total_P

    def apply(self, noisy_sum_P: Floats) -> Floats:
        """One step of SGD."""
        move_P = noisy_sum_P * np.float32(
            LEARNING_RATE / (self._setting.num_units * self._setting.sample_rate)
        )
        with torch.no_grad():
            weights_P = nn.utils.parameters_to_vector(self._model.parameters()) - torch.from_numpy(move_P)
            nn.utils.vector_to_parameters(weights_P, self._model.parameters())
        return weights_P.numpy().copy()

    def losses(self, units: Units, extra: Sequence[Example] = ()) -> Floats:
        """Cross-entropy of each."""
        inputs, targets = self._gather(units, extra)
        with torch.no_grad():
            scores = self._model(torch.from_numpy(inputs))
            each = nn.functional.cross_entropy(scores, torch.from_numpy(targets), reduction="none")
        return each.numpy().copy()

    def _gather(
        self, units: Units, extra: Sequence[Example]
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        inputs = np.concatenate([self._inputs[units], *(each[0][None] for each in extra)])
        targets = np.concatenate([self._targets[units], *(np.asarray(each[1])[None] for each in extra)])
        return inputs, targets


@cache
def _declared(setting: Setting, noise_multiplier: float, num_parameters: int) -> Declared:
    charges = setting.charges(noise_multiplier)
    return Declared(
        sensitivity=setting.clip, noise_multiplier=noise_multiplier, sample_rate=setting.sample_rate,
        num_units=setting.num_units, num_parameters=num_parameters, steps=setting.steps,
        epsilon=epsilon_of(charges, delta=setting.delta), delta=setting.delta,
        normaliser=setting.num_units * setting.sample_rate, ranks=RANKS, charges=charges,
    )  # fmt: skip


def _summed(clipper: Clipper, model: nn.Module, inputs: Any, targets: Any) -> NDArray[np.float64]:
    clipper.zero()
    if len(targets):
        batch = torch.from_numpy(inputs), torch.from_numpy(targets)
        clipper.add(lambda: nn.functional.cross_entropy(model(batch[0]), batch[1]), len(targets))
    return clipper.sum_P.numpy().astype(np.float64)


def _data(num_units: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Normal inputs; labels by a plane, a third of them wrong, so that there is something to learn by heart."""
    random = np.random.default_rng(11)
    inputs = random.normal(size=(num_units, WIDTH)).astype(np.float32)
    targets = np.argmax(inputs @ random.normal(size=(WIDTH, CLASSES)), axis=1)
    wrong = random.random(num_units) < 1 / 3
    return inputs, np.where(wrong, random.integers(0, CLASSES, num_units), targets).astype(np.int64)
