"""Chances that mean what they say: raw scores made into frequencies, and how far they are from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from leptonai.operations.predict.history import Floats

NUM_BINS = 10
"""Bins of equal width in which chances are compared with what happened."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Calibration:
    """Raw scores and the chances they stand for, both increasing; between them it is interpolated."""

    raw_G: Floats
    chance_G: Floats

    def chance(self, raw_N: Floats) -> Floats:
        """The chances, within (0, 1)."""
        return np.asarray(np.interp(raw_N, self.raw_G, self.chance_G))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Cases with chances between two bounds: the mean chance told, and the share that it befell.

    Args:
        weight: of the cases, as a share of all.
    """

    told: float
    happened: float
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Reliability:
    """How chances held, measured on units that were left out.

    Args:
        error: expected calibration error, the mean distance of told from happened (Guo et al. 2017).
        brier: mean squared distance of the chance from what happened, 0 to 1.
        base_brier: that of telling everyone the mean; below it there is skill.
        num_cases, num_hits: cases with a known outcome, and those it befell.
    """

    error: float
    brier: float
    base_brier: float
    num_cases: int
    num_hits: int
    bins: tuple[Bin, ...]


def fit_calibration(raw_N: Floats, hit_N: NDArray[np.bool_], weights_N: Floats) -> Calibration:
    """The increasing function that fits best (isotonic regression), joined at the middles of its steps.

    A step's share is drawn towards the mean by one case, so that no chance is told as 0 or 1.

    Source: Zadrozny & Elkan 2002; joined at the middles, Oron & Flournoy 2017.

    >>> made = fit_calibration(np.arange(8.0), np.arange(8) > 3, np.ones(8))
    >>> [round(float(chance), 2) for chance in made.chance(np.array([0.0, 9.0]))]
    [0.1, 0.9]
    """
    values, at_N = np.unique(raw_N, return_inverse=True)
    weight = np.bincount(at_N, weights_N)
    hits = np.bincount(at_N, weights_N * hit_N)
    mean = float(hits.sum() / weight.sum())
    blocks = isotonic_regression(hits / weight, weights=weight).blocks[:-1]
    weight_B, hits_B = np.add.reduceat(weight, blocks), np.add.reduceat(hits, blocks)
    middle_B = np.add.reduceat(weight * values, blocks) / weight_B
    num_B = weight_B * len(raw_N) / weight.sum()
    drawn_B = (hits_B / weight_B * num_B + mean) / (num_B + 1)
    return Calibration(raw_G=middle_B, chance_G=np.maximum.accumulate(drawn_B))


def held_out_chances(
    raw_N: Floats, hit_N: NDArray[np.bool_], weights_N: Floats, fold_N: NDArray[np.intp]
) -> Floats:
    """Chances of each fold by a calibration fitted on the others: what calibration is judged by."""
    made = np.empty(len(raw_N))
    for fold in np.unique(fold_N):
        seen = (fold_N != fold) & (weights_N > 0)
        made[fold_N == fold] = fit_calibration(raw_N[seen], hit_N[seen], weights_N[seen]).chance(
            raw_N[fold_N == fold]
        )
    return made


def reliability(chance_N: Floats, hit_N: NDArray[np.bool_], weights_N: Floats) -> Reliability:
    """How the chances held; cases of weight 0 have no known outcome.

    >>> found = reliability(np.array([0.1, 0.1, 0.9, 0.9]), np.array([False, False, True, True]), np.ones(4))
    >>> round(found.error, 3), round(found.brier, 3), found.base_brier
    (0.1, 0.01, 0.25)
    """
    known = weights_N > 0
    chance, hit, weight = chance_N[known], hit_N[known].astype(float), weights_N[known]
    weight = weight / weight.sum()
    mean = float(weight @ hit)
    at = np.minimum((chance * NUM_BINS).astype(int), NUM_BINS - 1)
    bins = tuple(
        _bin(chance[at == number], hit[at == number], weight[at == number]) for number in np.unique(at)
    )
    return Reliability(
        error=sum(each.weight * abs(each.told - each.happened) for each in bins),
        brier=float(weight @ (chance - hit) ** 2),
        base_brier=mean * (1 - mean),
        num_cases=int(known.sum()),
        num_hits=int(hit.sum()),
        bins=bins,
    )


def _bin(chance: Floats, hit: Floats, weight: Floats) -> Bin:
    total = float(weight.sum())
    return Bin(told=float(weight @ chance) / total, happened=float(weight @ hit) / total, weight=total)


def unit_folds(
    names: Sequence[str], num_folds: int, seed: int, key: Callable[[str], str]
) -> NDArray[np.intp]:
    """A fold for each name; names with the same key share one."""
    _, at_N = np.unique([key(name) for name in names], return_inverse=True)
    return np.asarray((np.random.default_rng(seed).permutation(int(at_N.max()) + 1) % num_folds)[at_N])
