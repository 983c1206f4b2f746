"""Slow ranks in recorded step times: one rank's computing lengthened by a tenth from some step on, and nobody's.

The recording (:mod:`benchmarks.training_watch_record_steps`) is of eight real processes. Its clean steps follow
each other, so what disturbs a machine is in it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from leptonai.operations.watch.straggler import StragglerWatch

SLOWDOWN = 1.10
WITHIN_STEPS = 20
LEAD_STEPS = 300
"""Of the recording before a slowdown: a run that has just begun is another question."""

Floats = NDArray[np.float64]


def exchange_with_wait(compute_SR: Floats, own_SR: Floats) -> Floats:
    """What a rank sees of an exchange: the wait for the last, then its own part."""
    found: Floats = compute_SR.max(axis=1, keepdims=True) - compute_SR + own_SR
    return found


def flags(compute_SR: Floats, own_SR: Floats) -> int:
    """How often a rank is named in these steps, at their beginning knowing nothing."""
    watch, seen_SR = StragglerWatch(compute_SR.shape[1]), exchange_with_wait(compute_SR, own_SR)
    return sum(
        not each.over
        for step in range(len(compute_SR))
        for each in watch.update(step, compute_SR[step], seen_SR[step])
    )


def is_named(compute_SR: Floats, own_SR: Floats, *, rank: int, begin: int) -> bool:
    """Whether a rank that is slow from a step on is named within twenty, and nobody else before."""
    slowed = compute_SR[begin - LEAD_STEPS : begin + WITHIN_STEPS].copy()
    slowed[LEAD_STEPS:, rank] *= SLOWDOWN
    seen = exchange_with_wait(slowed, own_SR[begin - LEAD_STEPS : begin + WITHIN_STEPS])
    watch = StragglerWatch(compute_SR.shape[1])
    named: list[tuple[int, int]] = []
    for step in range(len(slowed)):
        named += [(step, each.rank) for each in watch.update(step, slowed[step], seen[step]) if not each.over]
    return [each for _, each in named] == [rank]


def judge(compute_SR: Floats, own_SR: Floats, *, num_trials: int, seed: int) -> tuple[float, int]:
    """Share of slowed ranks that are named, and false flags in the clean steps."""
    random = np.random.default_rng(seed)
    begins: Sequence[int] = random.integers(LEAD_STEPS, len(compute_SR) - WITHIN_STEPS, num_trials).tolist()
    ranks: Sequence[int] = random.integers(0, compute_SR.shape[1], num_trials).tolist()
    named = sum(
        is_named(compute_SR, own_SR, rank=rank, begin=begin)
        for rank, begin in zip(ranks, begins, strict=True)
    )
    return named / num_trials, flags(compute_SR, own_SR)
