"""Private trainers to be audited, of NumPy alone: an honest one and five that break their promise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from scipy.special import logsumexp

from leptonai.security.privacy.accounting.mechanisms import Charge
from leptonai.security.privacy.proof.trainer import Declared, Example, Floats, Units

Fault = Literal[
    "none", "noise / 10", "no clipping", "shuffled sampler", "sigma / N by each rank", "unclipped bias",
    "divides by the batch", "same noise again", "a layer without noise", "poisoned by NaN", "sees the others",
    "data-dependent normaliser",
]  # fmt: skip
NUM_CLASSES = 4


class LogisticTrainer:
    """Softmax regression on random data; labels are a linear function of the inputs, some of them wrong."""

    def __init__(
        self, *, num_units: int = 600, width: int = 40, sample_rate: float = 0.1, steps: int = 60,
        noise_multiplier: float = 1.0, epsilon: float = 8.0, delta: float = 1e-5, clip: float = 1.0, ranks: int = 1,
        rate: float = 0.5, fault: Fault = "none", present: Units | None = None, max_batch: int | None = None,
        charges: tuple[Charge, ...] = (),
    ) -> None:  # fmt: skip
        random = np.random.default_rng(5)
        self.inputs = random.normal(size=(num_units, width)).astype(np.float32)
        plane = random.normal(size=(width, NUM_CLASSES))
        self.targets = np.argmax(
            self.inputs @ plane + 3 * random.normal(size=(num_units, NUM_CLASSES)), axis=1
        )
        self.options = {
            "num_units": num_units, "width": width, "sample_rate": sample_rate, "steps": steps,
            "noise_multiplier": noise_multiplier, "epsilon": epsilon, "delta": delta, "clip": clip, "ranks": ranks,
            "rate": rate, "fault": fault, "max_batch": max_batch, "charges": charges,
        }  # fmt: skip
        self.fault, self.rate, self.width = fault, rate, width
        self.present = np.arange(num_units) if present is None else present
        self.declared = Declared(
            sensitivity=clip, noise_multiplier=noise_multiplier, sample_rate=sample_rate, num_units=num_units,
            num_parameters=(width + 1) * NUM_CLASSES, steps=steps, epsilon=epsilon, delta=delta,
            normaliser=num_units * sample_rate, ranks=ranks, max_batch=max_batch, charges=charges,
        )  # fmt: skip
        if fault == "data-dependent normaliser":
            self.declared = replace(self.declared, normaliser=len(self.present) * sample_rate)
        self.reset()

    def without(self, unit: int) -> LogisticTrainer:
        return LogisticTrainer(**self.options, present=np.setdiff1d(self.present, [unit]))  # type: ignore[arg-type]

    def example(self, unit: int) -> Example:
        return self.inputs[unit].copy(), np.array(self.targets[unit])

    def reset(self) -> None:
        self.weights_P = np.zeros(self.declared.num_parameters, dtype=np.float32)
        self.seen = 1

    def batch(self, step: int, key: bytes) -> Units:
        declared = self.declared
        if self.fault == "shuffled sampler":
            size = round(declared.num_units * declared.sample_rate)
            epoch, place = divmod(step, declared.num_units // size)
            order = _random(key, "order", epoch).permutation(self.present)
            return order[place * size : (place + 1) * size]
        coins = _random(key, "coins", step)
        taken = np.flatnonzero(coins.random(declared.num_units) < declared.sample_rate)
        if declared.max_batch is not None and len(taken) > declared.max_batch:
            taken = np.sort(coins.permutation(taken)[: declared.max_batch])
        return np.intersect1d(taken, self.present)

    def clipped_sum(self, units: Units, extra: Sequence[Example] = ()) -> Floats:
        inputs, targets = self._gather(units, extra)
        self.seen = max(1, len(inputs))
        if len(inputs) == 0:
            return np.zeros_like(self.weights_P)
        if self.fault == "sees the others":
            inputs = inputs - inputs.mean(axis=0)
        with np.errstate(all="ignore"):
            errors = self._chances(inputs)
            errors[np.arange(len(targets)), targets] -= 1
            gradients = np.einsum("bi,bc->bic", inputs, errors).reshape(len(inputs), -1)
            squares = (gradients.astype(np.float64) ** 2).sum(1)
            if self.fault != "unclipped bias":
                squares += (errors.astype(np.float64) ** 2).sum(1)
            factors = np.minimum(1, self.declared.sensitivity / np.sqrt(np.maximum(squares, 1e-30)))
            if self.fault == "no clipping":
                factors = np.ones_like(factors)
            fine = np.isfinite(squares) & np.isfinite(errors).all(1)
            if self.fault != "poisoned by NaN":
                gradients, errors = np.where(fine[:, None], gradients, 0), np.where(fine[:, None], errors, 0)
                factors = np.where(fine, factors, 0)
            of_bias = np.where(fine, 1, 0) if self.fault == "unclipped bias" else factors
            total = [(factors[:, None] * gradients).sum(0), (of_bias[:, None] * errors).sum(0)]
        return np.concatenate(total).astype(np.float32)

    def noise(self, step: int, key: bytes) -> Floats:
        declared = self.declared
        scale = declared.noise_scale
        if self.fault == "noise / 10":
            scale /= 10
        if self.fault == "same noise again":
            step = 0
        if self.fault == "sigma / N by each rank":
            parts = [
                _random(key, f"noise {rank}", step).normal(size=self.weights_P.shape) * scale / declared.ranks
                for rank in range(declared.ranks)
            ]
            return np.sum(parts, axis=0).astype(np.float32)
        drawn = (_random(key, "noise", step).normal(size=self.weights_P.shape) * scale).astype(np.float32)
        if self.fault == "a layer without noise":
            drawn[-NUM_CLASSES:] = 0
        return drawn

    def apply(self, noisy_sum_P: Floats) -> Floats:
        normaliser = self.seen if self.fault == "divides by the batch" else self.declared.normaliser
        self.weights_P = self.weights_P - np.float32(self.rate / normaliser) * noisy_sum_P
        return self.weights_P

    def losses(self, units: Units, extra: Sequence[Example] = ()) -> Floats:
        inputs, targets = self._gather(units, extra)
        scores = self._scores(inputs)
        return (logsumexp(scores, axis=1) - scores[np.arange(len(targets)), targets]).astype(np.float32)

    def _gather(self, units: Units, extra: Sequence[Example]) -> tuple[Floats, Units]:
        inputs = np.concatenate([self.inputs[units], *(each[0][None] for each in extra)])
        targets = np.concatenate([self.targets[units], *(each[1][None] for each in extra)])
        return inputs, targets

    def _scores(self, inputs: Floats) -> Floats:
        weights = self.weights_P[:-NUM_CLASSES].reshape(self.width, NUM_CLASSES)
        with np.errstate(all="ignore"):
            return np.asarray(inputs @ weights + self.weights_P[-NUM_CLASSES:])

    def _chances(self, inputs: Floats) -> Floats:
        scores = self._scores(inputs)
        scores = np.exp(scores - scores.max(axis=1, keepdims=True))
        return np.asarray(scores / scores.sum(axis=1, keepdims=True))


def _random(key: bytes, purpose: str, number: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence([*key, 256, *purpose.encode(), 256, number]))
