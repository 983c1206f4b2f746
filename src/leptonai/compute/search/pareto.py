"""The exact Pareto front of many rows, chunk after chunk.

A row is covered by another if it is nowhere smaller; the front is what no other row covers. Of rows equal in every
cost, which cover each other, the first stays: a front should not list one bargain many times.

Shapes: K costs, N rows, F rows of a front.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leptonai.compute.prediction.layouts import Floats

Places = NDArray[np.intp]
NUM_PIVOTS = 8
"""Rows tried first against all others; a few good ones cover nearly everything, and then sorting is cheap."""


def front_of(costs_KN: Floats) -> Places:
    """Ascending places of the rows on the front.

    Args:
        costs_KN: finite, smaller is better; K >= 1.

    >>> front_of(np.array([[1.0, 2.0, 3.0, 1.0], [3.0, 2.0, 2.5, 3.0]])).tolist()
    [0, 1]
    """
    alive = np.arange(costs_KN.shape[1])
    for pivot in _pivots(costs_KN):
        costs = costs_KN[:, alive]
        covered = _covered(costs, costs_KN[:, pivot])
        # The pivot itself and rows equal to it before it stay: the first of equals is decided by the sorting below.
        covered &= ~((costs == costs_KN[:, pivot : pivot + 1]).all(axis=0) & (alive <= pivot))
        alive = alive[~covered]
    # Whatever covers a row comes before it in this order, and equal rows keep theirs, so the first row alive is
    # always on the front.
    order = alive[np.lexsort(costs_KN[::-1, alive])]
    found = []
    while order.size:
        first, order = order[0], order[1:]
        found.append(first)
        order = order[~_covered(costs_KN[:, order], costs_KN[:, first])]
    return np.sort(np.array(found, np.intp))


def merge(front_KF: Floats, chunk_KN: Floats) -> tuple[Places, Places]:
    """The front of a front and a chunk: which of the front stay, and which of the chunk join; both ascending.

    Rows of the front count as earlier than those of the chunk.
    """
    alive = np.arange(chunk_KN.shape[1])
    for place in _strongest_first(front_KF):
        if not alive.size:
            break
        alive = alive[~_covered(chunk_KN[:, alive], front_KF[:, place])]
    joining = alive[front_of(chunk_KN[:, alive])]
    staying = np.arange(front_KF.shape[1])
    for place in joining:
        staying = staying[~_covered(front_KF[:, staying], chunk_KN[:, place])]
    return staying, joining


def _covered(costs_KN: Floats, by_K: Floats) -> NDArray[np.bool_]:
    covered: NDArray[np.bool_] = costs_KN[0] >= by_K[0]
    for costs_N, by in zip(costs_KN[1:], by_K[1:], strict=True):
        covered &= costs_N >= by
    return covered


def _scores(costs_KN: Floats) -> Floats:
    """Sums of the costs, each on a scale of its own from least to most."""
    least = costs_KN.min(axis=1, keepdims=True)
    width = costs_KN.max(axis=1, keepdims=True) - least
    scores: Floats = ((costs_KN - least) / np.where(width > 0, width, 1.0)).sum(axis=0)
    return scores


def _pivots(costs_KN: Floats) -> Places:
    """A few rows that are likely to cover many others: the least in each cost, and those of the least scores."""
    num_rows = costs_KN.shape[1]
    if num_rows <= 4 * NUM_PIVOTS:
        return np.empty(0, np.intp)
    best = np.argpartition(_scores(costs_KN), NUM_PIVOTS)[:NUM_PIVOTS]
    return np.unique(np.concatenate([best, costs_KN.argmin(axis=1)]))


def _strongest_first(front_KF: Floats) -> Places:
    return np.argsort(_scores(front_KF)) if front_KF.shape[1] else np.empty(0, np.intp)
