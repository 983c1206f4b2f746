"""From right guesses about who took part in one run to a lower bound on its epsilon.

Source: Steinke, Nasr and Jagielski, "Privacy Auditing with One (1) Training Run", NeurIPS 2023
(arXiv:2305.08846), Theorem 5.2 and Algorithm 1. Each of m units is in the data with probability 1/2, by coins of
its own; whoever sees only what an (epsilon, delta) private run gave guesses for r of them, and abstains for the
rest. The guesses may rest on each other: that is what the theorem allows for and plain binomial intervals do not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from leptonai.core.errors import InputError

SHARES_GUESSED = (0.1, 0.4, 1.0)
"""Shares of the units that are guessed for, all tried; chosen before looking, and paid for by their number."""
_LARGEST_EPSILON = 64.0
_STEP = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Guesses:
    """How many of the guesses were right: ``num_right`` of ``num_guessed``, about ``num_units`` units."""

    num_units: int
    num_guessed: int
    num_right: int

    def __post_init__(self) -> None:
        if not 0 <= self.num_right <= self.num_guessed <= self.num_units:
            raise InputError(
                "Guesses: expected 0 <= num_right <= num_guessed <= num_units, "
                f"found {self.num_right}, {self.num_guessed}, {self.num_units}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LowerBound:
    """``epsilon`` is at least this, unless something happened whose probability is below 1 - ``confidence``.

    ``guesses`` are those that gave the bound.
    """

    epsilon: float
    confidence: float
    guesses: Guesses


def p_value(guesses: Guesses, *, epsilon: float, delta: float) -> float:
    """An upper bound on the probability of as many right guesses, had the run been (epsilon, delta) private.

    Args:
        guesses: what was guessed.
        epsilon: >= 0.
        delta: in [0, 1].

    Source: Steinke et al. 2023, Theorem 5.2: with W ~ Binomial(r, e^eps / (1 + e^eps)) it is
    P[W >= v] + 2 m delta max_i P[v > W >= v - i] / i, over i = 1..v.

    >>> round(p_value(Guesses(num_units=10, num_guessed=10, num_right=10), epsilon=0.0, delta=0.0), 6)
    0.000977
    """
    if not (epsilon >= 0 and 0 <= delta <= 1):
        raise InputError(f"p_value: expected epsilon >= 0 and delta in [0, 1], found {epsilon}, {delta}")
    right, guessed = guesses.num_right, guesses.num_guessed
    accuracy = 1 / (1 + math.exp(-epsilon))
    beta = float(stats.binom.sf(right - 1, guessed, accuracy))
    if right == 0 or delta == 0:
        return min(1.0, beta)
    just_below = np.cumsum(stats.binom.pmf(np.arange(right - 1, -1, -1), guessed, accuracy))
    alpha = float(np.max(just_below / np.arange(1, right + 1)))
    return min(1.0, beta + 2 * guesses.num_units * delta * alpha)


def epsilon_lower_bound(guesses: Guesses, *, delta: float, confidence: float = 0.95) -> float:
    """The smallest epsilon that the guesses do not rule out at this confidence; 0 where they rule out none.

    Args:
        guesses: what was guessed; how many must not depend on who took part.
        delta: of the claim, in [0, 1].
        confidence: in (0, 1).

    >>> round(epsilon_lower_bound(Guesses(num_units=100, num_guessed=100, num_right=100), delta=0.0), 3)
    3.493
    """
    if not 0 < confidence < 1:
        raise InputError(f"epsilon_lower_bound: expected confidence in (0, 1), found {confidence}")
    chance = 1 - confidence

    def ruled_out(epsilon: float) -> bool:
        return p_value(guesses, epsilon=epsilon, delta=delta) < chance

    if not ruled_out(0.0):
        return 0.0
    # Upwards in steps: with a delta the p-value need not grow with epsilon, and the first one not ruled out counts.
    high = _STEP
    while ruled_out(high):
        high += _STEP
        if high > _LARGEST_EPSILON:
            return _LARGEST_EPSILON
    low = high - _STEP
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if ruled_out(middle) else (low, middle)
    return low


def guesses_by_score(
    scores_M: NDArray[np.float64], is_in_M: NDArray[np.bool_], *, num_in: int, num_out: int
) -> Guesses:
    """Guess that the ``num_in`` units of highest score took part and the ``num_out`` of lowest did not.

    Units of equal score are taken in their order, which must not depend on who took part. A score that is not a
    number is one to abstain from: it counts as the middle.
    """
    if num_in < 0 or num_out < 0 or num_in + num_out > len(scores_M):
        raise InputError(f"guesses_by_score: {num_in} and {num_out} guesses about {len(scores_M)} units")
    known = np.where(np.isnan(scores_M), np.nanmedian(scores_M) if len(scores_M) else 0.0, scores_M)
    order = np.argsort(known, kind="stable")
    right = int(np.sum(~is_in_M[order[:num_out]]))
    right += int(np.sum(is_in_M[order[len(order) - num_in :]]))
    return Guesses(num_units=len(scores_M), num_guessed=num_in + num_out, num_right=right)


def choices(
    scores_M: NDArray[np.float64], is_in_M: NDArray[np.bool_], *, only_in: bool = False,
    shares: Sequence[float] = SHARES_GUESSED,
) -> list[Guesses]:  # fmt: skip
    """Guesses for each share of the units; ``only_in``: none that a unit did not take part."""
    made = []
    for share in shares:
        count = max(1, round(share * len(scores_M)))
        num_in = count if only_in else (count + 1) // 2
        made.append(guesses_by_score(scores_M, is_in_M, num_in=num_in, num_out=count - num_in))
    return made


def best_bound(tried: Sequence[Guesses], *, delta: float, confidence: float = 0.95) -> LowerBound:
    """The largest lower bound of several ways to guess about one run, at a confidence that holds for all of them.

    The chance of being wrong is split evenly between them.
    """
    if not tried:
        raise InputError("best_bound: there are no guesses")
    each = 1 - (1 - confidence) / len(tried)
    bounds = [
        LowerBound(
            epsilon=epsilon_lower_bound(guesses, delta=delta, confidence=each),
            confidence=confidence,
            guesses=guesses,
        )
        for guesses in tried
    ]
    return max(bounds, key=lambda bound: bound.epsilon)
