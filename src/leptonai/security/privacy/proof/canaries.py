"""Canaries in one run: units put in by coin flips, looked for in what the run released.

A canary takes the place of a unit of the data (its carrier), so that the run's own sampler decides when it takes
part. Shapes: M canaries; P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.security.privacy.proof.claims import Claim
from leptonai.security.privacy.proof.findings import FALSE_ALARM, Finding, at_most
from leptonai.security.privacy.proof.one_run import (
    Guesses,
    LowerBound,
    best_bound,
    choices,
    p_value,
)
from leptonai.security.privacy.proof.trainer import OpenTrainer, Units

OnStep = Callable[[], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CanaryRun:
    """What one run with canaries gave: a score a canary (higher: rather in), and who was in; both (M,)."""

    scores_M: NDArray[np.float64]
    is_in_M: NDArray[np.bool_]


def run_with_canaries(
    trainer: OpenTrainer,
    *,
    num_canaries: int,
    num_steps: int,
    key: bytes,
    with_data: bool = True,
    on_step: OnStep = lambda: None,
) -> CanaryRun:
    """Train with gradient canaries and score each by what the run released, over all steps (white box).

    Canary j adds ``sensitivity`` to one coordinate of its own, the strongest gradient that clipping lets through
    and one that no other canary disturbs. Its score is the sum of that coordinate over the noisy sums, less what
    the other units put there: their part does not depend on who of the canaries is in once the weights before the
    step are known, and the promise holds against somebody who knows all about them.

    Args:
        trainer: the run; it is reset first.
        num_canaries: M, at most the parameters and the units of the run.
        num_steps: of training.
        key: of all randomness, the noise's and the coins' too.
        with_data: whether the other units take part as well; without them a step costs next to nothing.
        on_step: called after each step.

    Source: the Dirac gradient canaries of Nasr et al. 2023 (arXiv:2302.07956), as used by Steinke et al. 2023.

    Raises:
        InputError: there are more canaries than parameters or units.
    """
    declared = trainer.declared
    _check_count(num_canaries, min(declared.num_parameters, declared.num_units))
    random = generator(key, "canaries")
    carriers_M = random.choice(declared.num_units, num_canaries, replace=False)
    places_M = random.choice(declared.num_parameters, num_canaries, replace=False)
    is_in_M = random.random(num_canaries) < 0.5
    canary_of = _places(carriers_M, declared.num_units)
    scores_M = np.zeros(num_canaries)
    trainer.reset()
    for step in range(num_steps):
        units = trainer.batch(step, key)
        taking_part = canary_of[units]
        present = taking_part[taking_part >= 0]
        real_P = trainer.clipped_sum(units[taking_part < 0] if with_data else units[:0])
        put_in_P = np.array(trainer.noise(step, key))
        put_in_P[places_M[present[is_in_M[present]]]] += np.float32(declared.sensitivity)
        scores_M += put_in_P[places_M]
        trainer.apply(real_P + put_in_P)
        on_step()
    return CanaryRun(scores_M=scores_M, is_in_M=is_in_M)


def run_with_input_canaries(
    trainer: OpenTrainer, *, num_canaries: int, num_steps: int, key: bytes, on_step: OnStep = lambda: None
) -> CanaryRun:
    """Train with examples that have another's target, and score each by how much its loss fell (black box).

    They go through the run's own clipping, and only the weights of the beginning and of the end are looked at.

    Raises:
        InputError: there are more canaries than units.
    """
    declared = trainer.declared
    _check_count(num_canaries, declared.num_units)
    random = generator(key, "input canaries")
    carriers_M = random.choice(declared.num_units, num_canaries, replace=False)
    others_M = random.permutation(declared.num_units)[:num_canaries]
    is_in_M = random.random(num_canaries) < 0.5
    canary_of = _places(carriers_M, declared.num_units)
    made = [
        (trainer.example(int(unit))[0], trainer.example(int(other))[1])
        for unit, other in zip(carriers_M, others_M, strict=True)
    ]
    nobody = carriers_M[:0].astype(np.int64)
    trainer.reset()
    before_M = np.array(trainer.losses(nobody, made), dtype=np.float64)
    for step in range(num_steps):
        units = trainer.batch(step, key)
        taking_part = canary_of[units]
        present = [made[each] for each in taking_part[taking_part >= 0] if is_in_M[each]]
        trainer.apply(trainer.clipped_sum(units[taking_part < 0], present) + trainer.noise(step, key))
        on_step()
    return CanaryRun(scores_M=before_M - trainer.losses(nobody, made), is_in_M=is_in_M)


def run_with_half(
    trainer: OpenTrainer,
    *,
    units: Units,
    num_steps: int,
    key: bytes,
    is_in: NDArray[np.bool_],
    on_step: OnStep = lambda: None,
) -> None:
    """Train on the data without those of ``units`` that ``is_in`` leaves out; the weights of the end stay."""
    left_out = np.zeros(trainer.declared.num_units, dtype=np.bool_)
    left_out[units[~is_in]] = True
    trainer.reset()
    for step in range(num_steps):
        batch = trainer.batch(step, key)
        total_P = trainer.clipped_sum(batch[~left_out[batch]]) + trainer.noise(step, key)
        trainer.apply(total_P)
        on_step()


def bound_of(run: CanaryRun, *, delta: float, confidence: float) -> LowerBound:
    """The best lower bound on epsilon that the scores give."""
    return best_bound(choices(run.scores_M, run.is_in_M), delta=delta, confidence=confidence)


def smallest_p_value(tried: Sequence[Guesses], held: Sequence[Claim]) -> float:
    """How likely guesses as good as the best of these were at most, had all claims held; paid for all tried."""
    least = min(p_value(each, epsilon=claim.epsilon, delta=claim.delta) for each in tried for claim in held)
    return min(1.0, len(tried) * len(held) * least)


def canary_finding(run: CanaryRun, held: Sequence[Claim], *, name: str = "epsilon, lower bound") -> Finding:
    """The lower bound against the claim that it comes closest to, or breaks.

    Flags an honest run with at most 1e-3, shared between the claims and between the numbers of guesses.
    """
    confidence = 1 - FALSE_ALARM / len(held)
    bounds = [bound_of(run, delta=claim.delta, confidence=confidence) for claim in held]
    bound, claim = max(zip(bounds, held, strict=True), key=lambda pair: pair[0].epsilon / pair[1].epsilon)
    guesses = bound.guesses
    return at_most(
        "canaries", name, bound.epsilon, claim.epsilon,
        f"{guesses.num_right} of {guesses.num_guessed} guesses about {guesses.num_units} canaries were right; at "
        f"delta {claim.delta:g}, confidence {1 - FALSE_ALARM:.4g}",
    )  # fmt: skip


def _check_count(num_canaries: int, most: int) -> None:
    if not 1 <= num_canaries <= most:
        raise InputError(
            f"canaries: expected from 1 to {most} of them, found {num_canaries}",
            hint="no more than the data has units and, for gradients, the model has parameters",
        )


def _places(carriers_M: Units, num_units: int) -> Units:
    """For each unit the canary that it carries, or -1."""
    places = np.full(num_units, -1, dtype=np.int64)
    places[carriers_M] = np.arange(len(carriers_M))
    return places


def generator(key: bytes, purpose: str) -> np.random.Generator:
    """Randomness of the audit's own, apart from the trainer's though it comes from one key."""
    return np.random.default_rng(np.random.SeedSequence([*key, 0x100, *purpose.encode()]))
