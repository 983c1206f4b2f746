"""Whether units take part as declared: each by a coin of its own, of the declared rate, anew in every step.

A shuffled order has the same mean rate, but neither these coins nor this privacy: every unit comes once an epoch
and batches have one size. Shapes: S steps, N units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from leptonai.security.privacy.proof.findings import RARE_ALARM, Finding, skipped
from leptonai.security.privacy.proof.trainer import Declared, OpenTrainer

MIN_STEPS, MAX_STEPS = 100, 4000
MAX_TAKEN = 4_000_000
"""Most memberships that are looked at; bounds the time for large data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """Sizes of the batches (S,), and in how many of them each unit was (N,); ``repeats`` within a batch."""

    sizes_S: NDArray[np.int64]
    counts_N: NDArray[np.int64]
    repeats: int
    strangers: int


def sampler_findings(trainer: OpenTrainer, *, key: bytes) -> list[Finding]:
    """Rows on rate, batch sizes and inclusion counts; each flags an honest sampler with about 1e-6."""
    declared = trainer.declared
    if declared.correlation == "banded":
        return [skipped("neighbours", "sampler", "banded runs take the data in a fixed order on purpose")]
    taken = take(trainer, key=key)
    broken = taken.repeats + taken.strangers
    mean, variance, fourth = _size_moments(declared)
    rate = mean / declared.num_units
    num_steps = len(taken.sizes_S)
    rows = [
        Finding(
            family="neighbours", name="sampler, units out of place", measured=broken, allowed=0,
            verdict="flagged" if broken else "ok",
            detail="units that came twice in a batch or that the run does not have",
        ),
        _rate(taken, mean, variance),
    ]  # fmt: skip
    if declared.sample_rate == 1.0:
        return rows
    sizes = taken.sizes_S.astype(np.float64)
    counts = taken.counts_N.astype(np.float64)
    rows.append(
        _spread(
            "sampler, spread of batch sizes", sizes, mean, variance, fourth,
            f"variance of the sizes of {num_steps} batches, over that of independent coins",
        )
    )  # fmt: skip
    coin = rate * (1 - rate)
    rows.append(
        _spread(
            "sampler, spread of inclusions", counts, num_steps * rate, num_steps * coin,
            _binomial_fourth(num_steps, rate),
            f"variance of how often each of {declared.num_units:,} units came in {num_steps} steps, over that of "
            "independent coins",
        )
    )  # fmt: skip
    return rows


def take(trainer: OpenTrainer, *, key: bytes) -> Taken:
    """Draw the batches of enough steps for each unit to come twice, if that is not too many."""
    declared = trainer.declared
    num_steps = round(min(MAX_STEPS, max(MIN_STEPS, 2 / declared.sample_rate)))
    num_steps = max(8, min(num_steps, round(MAX_TAKEN / (declared.sample_rate * declared.num_units))))
    counts_N = np.zeros(declared.num_units, dtype=np.int64)
    sizes, repeats, strangers = [], 0, 0
    for step in range(num_steps):
        units = trainer.batch(step, key)
        known = units[(units >= 0) & (units < declared.num_units)]
        once = np.unique(known)
        strangers += len(units) - len(known)
        repeats += len(known) - len(once)
        counts_N[once] += 1
        sizes.append(len(units))
    return Taken(
        sizes_S=np.array(sizes, dtype=np.int64), counts_N=counts_N, repeats=repeats, strangers=strangers
    )


def _size_moments(declared: Declared) -> tuple[float, float, float]:
    """Mean, variance and fourth central moment of an honest batch's size, truncated where declared so."""
    units, rate, most = declared.num_units, declared.sample_rate, declared.max_batch
    if most is None or most >= units:
        return units * rate, units * rate * (1 - rate), _binomial_fourth(units, rate)
    sizes = np.arange(most + 1)
    weights = stats.binom.pmf(sizes, units, rate)
    weights[-1] = stats.binom.sf(most - 1, units, rate)
    mean = float(sizes @ weights)
    return mean, float((sizes - mean) ** 2 @ weights), float((sizes - mean) ** 4 @ weights)


def _binomial_fourth(count: int, rate: float) -> float:
    coin = rate * (1 - rate)
    return count * coin * (1 + 3 * (count - 2) * coin)


def _rate(taken: Taken, mean: float, variance: float) -> Finding:
    """The mean batch size; too many units a step cost privacy, too few only accuracy, both break the claim."""
    num_steps = len(taken.sizes_S)
    measured = float(taken.sizes_S.mean())
    # 0.5 / S: sizes are whole numbers. 4.9 standard deviations are beyond 1e-6 of a normal; skew stays far inside.
    wide = 4.9 * math.sqrt(variance / num_steps) + 0.5 / num_steps
    return Finding(
        family="neighbours",
        name="sampler, mean batch size",
        limit="about",
        measured=measured,
        allowed=mean,
        verdict="ok" if abs(measured - mean) <= wide else "flagged",
        detail=f"over {num_steps} steps; {mean:.6g} was declared, {wide:.3g} more or less is chance",
    )


def _spread(
    name: str, values: NDArray[np.float64], mean: float, variance: float, fourth: float, detail: str
) -> Finding:
    """Sum of squared deviations over its expectation, against the limits of a gamma with its mean and variance.

    The gamma is exact for normal values (chi-squared); matching the fourth moment makes up for rare inclusions.
    """
    count = len(values)
    measured = float(np.mean((values - mean) ** 2)) / variance
    relative_variance = (fourth / variance**2 - 1) / count
    shape = 1 / relative_variance
    lowest, highest = stats.gamma.ppf([RARE_ALARM, 1 - RARE_ALARM], shape, scale=1 / shape)
    verdict = measured >= lowest and measured <= highest
    return Finding(
        family="neighbours",
        name=name,
        measured=measured,
        allowed=float(lowest if measured < 1 else highest),
        limit="at least" if measured < 1 else "at most",
        verdict="ok" if verdict else "flagged",
        detail=f"{detail}; from {lowest:.3f} to {highest:.3f} is chance",
    )
