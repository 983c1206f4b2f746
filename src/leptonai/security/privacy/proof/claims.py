"""What a run claims, as pairs of epsilon and delta, and whether its charges say the same as the run itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from leptonai.security.privacy.accounting.accountant import epsilon
from leptonai.security.privacy.accounting.mechanisms import (
    Approximate,
    Charge,
    DiscreteGaussian,
    Gaussian,
    Laplace,
    SampledGaussian,
    TruncatedSampledGaussian,
)
from leptonai.security.privacy.proof.findings import Finding, at_most, skipped
from leptonai.security.privacy.proof.statement import Statement
from leptonai.security.privacy.proof.trainer import Declared

SMALLER_DELTAS = (1e-2, 1e-4)
"""The same run also claims a larger epsilon at these shares of its delta.

A lower bound has to forgive m delta wrong promises about m units; at a smaller delta there is less to forgive, so
that blatant breaches are seen also where the claimed epsilon is large.
"""
_ROUNDING = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The run is (``epsilon``, ``delta``) private."""

    epsilon: float
    delta: float


def claims(declared: Declared, *, num_steps: int) -> tuple[Claim, ...]:
    """What holds after ``num_steps`` steps if the run is honest, the run's own claim first.

    Where the run names its charges, a part of its steps claims less than all, and smaller deltas larger epsilons.
    """
    if not declared.charges:
        return (Claim(epsilon=declared.epsilon, delta=declared.delta),)
    charges = declared.charges
    if num_steps < declared.steps and declared.correlation == "independent":
        charges = tuple(replace(each, count=min(each.count, num_steps)) for each in charges)
    deltas = [declared.delta, *(share * declared.delta for share in SMALLER_DELTAS)]
    made = [Claim(epsilon=epsilon(charges, delta=delta), delta=delta) for delta in deltas]
    # Never more than was promised aloud, should the charges say less than the statement.
    made[0] = replace(made[0], epsilon=min(made[0].epsilon, declared.epsilon))
    return tuple(made)


def accounting_findings(declared: Declared) -> list[Finding]:
    """Whether the charges are those of this sampler and this noise, and add up to the claim."""
    if not declared.charges:
        return [skipped("statement", "charges", "the run names no charges")]
    total = epsilon(declared.charges, delta=declared.delta)
    wrong = [word for charge in declared.charges for word in _disagreements(charge, declared)]
    uses = sum(charge.count for charge in declared.charges)
    if declared.correlation == "independent" and uses < declared.steps:
        wrong.append(f"{uses:,} uses for {declared.steps:,} steps")
    return [
        at_most(
            "statement", "charges, epsilon", total, declared.epsilon * (1 + _ROUNDING),
            f"epsilon at delta {declared.delta:g} of the charges that were accounted for, against the claim",
        ),
        Finding(
            family="statement", name="charges, disagreements", measured=len(wrong), allowed=0,
            verdict="flagged" if wrong else "ok",
            detail="; ".join(wrong) or "rate, noise and number of steps are those of the run",
        ),
    ]  # fmt: skip


def statement_findings(made: Statement, declared: Declared) -> list[Finding]:
    """Whether the written statement says what the trainer does, and its epsilon follows from its charges."""
    facts = made.facts
    pairs = {
        "delta": (facts.delta, declared.delta),
        "sample rate": (facts.sample_rate, declared.sample_rate),
        "normaliser": (facts.normaliser, declared.normaliser),
        "units": (facts.num_units, declared.num_units),
        "steps": (facts.steps_planned, declared.steps),
    }
    wrong = [
        f"{name} {said:g} for {done:g}"
        for name, (said, done) in pairs.items()
        if not math.isclose(said, done, rel_tol=1e-6)
    ]
    if facts.noise_multiplier > declared.noise_multiplier * (1 + _ROUNDING):
        wrong.append(f"noise multiplier {facts.noise_multiplier:g} for {declared.noise_multiplier:g}")
    if facts.max_batch != declared.max_batch:
        wrong.append(f"largest batch {facts.max_batch} for {declared.max_batch}")
    if not made.charges and facts.steps_released:
        wrong.append("no charges")
    total = epsilon(made.charges, delta=facts.delta) if made.charges else 0.0
    return [
        at_most(
            "statement", "statement, epsilon", total, facts.epsilon * (1 + _ROUNDING),
            f"epsilon at delta {facts.delta:g} of the statement's own charges, against what it says",
        ),
        Finding(
            family="statement", name="statement, disagreements", measured=len(wrong), allowed=0,
            verdict="flagged" if wrong else "ok",
            detail="; ".join(wrong) or "it says what the trainer does",
        ),
    ]  # fmt: skip


def _disagreements(charge: Charge, declared: Declared) -> list[str]:
    """Where a charge is for less than the run does: a lower rate, or more noise."""
    rate, noise = 1.0, 0.0
    match charge.mechanism:
        case SampledGaussian() | TruncatedSampledGaussian():
            rate, noise = charge.mechanism.sample_rate, charge.mechanism.noise_multiplier
        case DiscreteGaussian():
            rate = charge.mechanism.sample_rate
            noise = charge.mechanism.sigma / charge.mechanism.sensitivity
        case Gaussian():
            noise = charge.mechanism.noise_multiplier
        case Laplace() | Approximate():
            pass
    words = []
    if rate < declared.sample_rate * (1 - _ROUNDING) and declared.correlation == "independent":
        words.append(f"a rate of {rate:g} for one of {declared.sample_rate:g}")
    if noise > declared.noise_multiplier * (1 + _ROUNDING):
        words.append(f"a noise multiplier of {noise:g} for one of {declared.noise_multiplier:g}")
    if isinstance(charge.mechanism, TruncatedSampledGaussian):
        population, most = charge.mechanism.population, charge.mechanism.max_batch
        if population != declared.num_units or (declared.max_batch or population) > most:
            words.append("a truncation that is not the run's")
    return words
