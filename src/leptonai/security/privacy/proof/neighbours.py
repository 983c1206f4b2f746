"""A run and its neighbours with equal randomness: what one unit changes, and what it must not change.

After Re:cord-play (Cebere et al. 2026, arXiv:2602.17454): the steps of a run are recorded, then replayed on data
that differ by one unit, with the same keys, the same weights and the same released sums.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import LeptonError
from leptonai.security.privacy.proof.canaries import OnStep, generator
from leptonai.security.privacy.proof.findings import Finding, at_most
from leptonai.security.privacy.proof.trainer import Declared, Example, Floats, OpenTrainer, Units

TOLERANCE = 1e-4
_ROUNDING = 2e-6
"""Of float32 sums, relative to the norm of the larger one."""


MOST_TOGETHER = 64
"""Units of a batch that others are added to: what one of them changes does not rest on how many there are."""


def hostile_examples(example: Example) -> dict[str, Example]:
    """Examples that try to have more effect than they may, made from an honest one.

    Floating-point inputs become huge, not finite, all ones or all zeros; whole numbers (ids, classes) become one
    repeated id, since others might be unknown to the model.
    """
    inputs, target = example
    if not np.issubdtype(inputs.dtype, np.floating):
        return {"one id only": (np.full_like(inputs, inputs.flat[0]), target), "as it is": example}
    made: dict[str, NDArray[np.floating]] = {
        "as it is": inputs,
        "all ones": np.ones_like(inputs),
        "all zeros": np.zeros_like(inputs),
        "a million times": inputs * 1e6 + 1e6,
        "overflowing": np.full_like(inputs, 1e38),
        "not a number": np.full_like(inputs, np.nan),
        "infinite": np.full_like(inputs, np.inf),
    }
    one = np.array(inputs)
    one.flat[0] = 1e9
    made["one outlier"] = one
    return {name: (values.astype(inputs.dtype), target) for name, values in made.items()}


def sensitivity_findings(
    trainer: OpenTrainer,
    *,
    key: bytes,
    num_units: int = 12,
    num_steps: int = 2,
    on_step: OnStep = lambda: None,
) -> list[Finding]:
    """How much one unit more changes the clipped sum: units of the data, and hostile ones, at several weights."""
    declared = trainer.declared
    worst = _Worst(declared)
    trainer.reset()
    for step in range(num_steps + 1):
        _try_weights(trainer, key, step, num_units, worst)
        batch = trainer.batch(step, key)[:MOST_TOGETHER]
        # Without noise and without privacy: only to come to other weights.
        trainer.apply(trainer.clipped_sum(batch) * np.float32(1 + step))
        on_step()
    allowed = declared.sensitivity * (1 + TOLERANCE)
    return [
        at_most(
            "neighbours", "sensitivity, units of the data", worst.of_data, allowed,
            "largest L2 change of a step's sum by one unit of the data, at the same weights",
        ),
        at_most(
            "neighbours", "sensitivity, hostile units", worst.of_hostile, allowed,
            f"largest L2 change by one made-up unit; the worst was {worst.name!r}",
        ),
        at_most(
            "neighbours", "effect on other units", worst.on_others, 1.0,
            "what a unit adds to a batch against what it adds alone (1 is float32 rounding)",
        ),
        Finding(
            family="neighbours", name="sums that are not finite", measured=worst.not_finite, allowed=0,
            verdict="flagged" if worst.not_finite else "ok",
            detail="sums of a step that one unit turned into NaN or infinity",
        ),
    ]  # fmt: skip


class _Worst:
    """The largest effects seen so far."""

    def __init__(self, declared: Declared) -> None:
        self.declared = declared
        self.of_data = self.of_hostile = self.on_others = 0.0
        self.name = "none"
        self.not_finite = 0

    def see(self, base_P: Floats, alone_P: Floats, together_P: Floats, hostile: str | None) -> None:
        """Take up one unit's effect, alone and beside others."""
        if not (np.isfinite(alone_P).all() and np.isfinite(together_P).all()):
            self.not_finite += 1
            return
        difference_P = together_P.astype(np.float64) - base_P
        rounding = _ROUNDING * max(_norm(base_P), self.declared.sensitivity)
        effect = max(_norm(difference_P) - rounding, _norm(alone_P))
        if hostile is None:
            self.of_data = max(self.of_data, effect)
        elif effect > self.of_hostile:
            self.of_hostile, self.name = effect, hostile
        allowed = TOLERANCE * self.declared.sensitivity + rounding
        self.on_others = max(self.on_others, _norm(difference_P - alone_P) / allowed)


def _try_weights(trainer: OpenTrainer, key: bytes, step: int, num_units: int, worst: _Worst) -> None:
    random = generator(key, f"neighbours {step}")
    chosen = random.choice(
        trainer.declared.num_units, min(num_units, trainer.declared.num_units), replace=False
    )
    batch = np.setdiff1d(trainer.batch(step, key), chosen)[:MOST_TOGETHER]
    empty = batch[:0]
    base_P = np.array(trainer.clipped_sum(batch))
    if not np.isfinite(base_P).all():
        worst.not_finite += 1
        return
    for unit in chosen:
        one: Units = np.array([unit], dtype=np.int64)
        alone_P = np.array(trainer.clipped_sum(one))
        worst.see(base_P, alone_P, np.array(trainer.clipped_sum(np.append(batch, one))), None)
    for name, hostile in hostile_examples(trainer.example(int(chosen[0]))).items():
        alone_P = np.array(trainer.clipped_sum(empty, [hostile]))
        worst.see(base_P, alone_P, np.array(trainer.clipped_sum(batch, [hostile])), name)


def control_flow_finding(
    trainer: OpenTrainer,
    *,
    key: bytes,
    num_neighbours: int = 2,
    num_steps: int = 3,
    on_step: OnStep = lambda: None,
) -> Finding:
    """Replay a run on neighbouring data and count what changed that may depend on no unit.

    That is: what the run declares (rates, steps, normaliser, noise), who else is in a batch, the noise, shapes, and
    what the optimiser makes of one and the same released sum, also after batches of different sizes.
    """
    random = generator(key, "replay")
    units = random.choice(
        trainer.declared.num_units, min(num_neighbours, trainer.declared.num_units), replace=False
    )
    words: list[str] = []
    for unit in units:
        try:
            words += _replay(trainer, trainer.without(int(unit)), int(unit), key, num_steps, on_step)
        except LeptonError as error:
            words.append(f"the run without a unit stopped: {type(error).__name__}")
    words += _normaliser(trainer, key)
    said = "; ".join(dict.fromkeys(words)) or "nothing"
    return Finding(
        family="neighbours", name="control flow, changes", measured=len(words), allowed=0,
        verdict="flagged" if words else "ok",
        detail=f"in {len(units)} neighbours, {num_steps} steps each, what depended on a unit: {said}",
    )  # fmt: skip


def _replay(
    one: OpenTrainer, other: OpenTrainer, unit: int, key: bytes, num_steps: int, on_step: OnStep
) -> list[str]:
    words = []
    if one.declared != other.declared:
        words.append("what the run declares")
    one.reset()
    other.reset()
    for step in range(num_steps):
        units, others = one.batch(step, key), other.batch(step, key)
        if not np.array_equal(np.setdiff1d(units, [unit]), np.unique(others)) or unit in others:
            words.append("who else is in a batch")
        noise_P, other_noise_P = one.noise(step, key), other.noise(step, key)
        if not _same(noise_P, other_noise_P):
            words.append("the noise")
        sum_P = one.clipped_sum(units[:MOST_TOGETHER])
        if sum_P.shape != other.clipped_sum(others[:MOST_TOGETHER]).shape or sum_P.dtype != np.float32:
            words.append("the shape of what is released")
        released_P = sum_P + noise_P
        if not _same(one.apply(released_P), other.apply(released_P)):
            words.append("the optimiser's step from the same released sum")
        on_step()
    return words


def _normaliser(trainer: OpenTrainer, key: bytes) -> list[str]:
    """The same released sum after an empty batch, a single unit and a large batch: the same weights."""
    units = np.arange(min(trainer.declared.num_units, MOST_TOGETHER), dtype=np.int64)
    released_P = trainer.noise(0, key)
    ends = []
    for batch in (units[:0], units[:1], units):
        trainer.reset()
        trainer.clipped_sum(batch)
        ends.append(np.array(trainer.apply(released_P)))
    same = _same(ends[0], ends[1]) and _same(ends[0], ends[2])
    return [] if same else ["the step's size, which follows the size of the batch"]


def _norm(values_P: NDArray[np.floating]) -> float:
    return float(np.linalg.norm(values_P.astype(np.float64)))


def _same(left: Floats, right: Floats) -> bool:
    return np.asarray(left).tobytes() == np.asarray(right).tobytes()
