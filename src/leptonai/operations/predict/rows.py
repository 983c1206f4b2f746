"""The chance of failure of single rows, such as one product or one shift each, without a course over time."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.operations.predict.boosting import Recipe, Trees, grow
from leptonai.operations.predict.calibrated import (
    Calibration,
    Reliability,
    fit_calibration,
    held_out_chances,
    reliability,
)
from leptonai.operations.predict.history import Floats
from leptonai.operations.predict.remaining_life import Reason, reasons

NUM_FOLDS = 5
LEAST_FAILURES = 20
MOST_PAIRED = 12
"""Columns up to which pairs are made: 12 give 132."""
RECIPE = Recipe(
    num_trees=300, learning_rate=0.05, num_leaves=15, min_rows=10, share_of_features=0.5, share_of_rows=0.8,
    penalty=1.0, num_bins=255,
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RowModel:
    """Chances of failure for rows of named columns."""

    names: tuple[str, ...]
    trees: Trees
    calibration: Calibration

    def chances(self, rows_NF: Floats) -> Floats:
        """A chance a row.

        Raises:
            InputError: the rows have another number of columns.
        """
        return self.calibration.chance(self.trees.predict(self._paired(rows_NF)))

    def reasons(self, row_F: Floats) -> tuple[Reason, ...]:
        """The columns that moved a row's odds most; a pair's part counts half for each of its columns."""
        moved = self.trees.contributions(self._paired(row_F[None]))[0]
        columns, parts = [], []
        for at, each in enumerate(pair_names(self.names)):
            for name in each:
                columns.append((name, ""))
                parts.append(moved[at] / len(each))
        return reasons(columns, np.array(parts))

    def _paired(self, rows_NF: Floats) -> Floats:
        if rows_NF.ndim != 2 or rows_NF.shape[1] != len(self.names):
            raise InputError(f"expected rows of {len(self.names)} columns: {', '.join(self.names)}")
        return with_pairs(rows_NF)


def fit_rows(
    rows_NF: Floats, failed_N: NDArray[np.bool_], names: Sequence[str], *, seed: int = 0, num_threads: int = 1
) -> tuple[RowModel, Reliability]:
    """A model of the chance of failure of rows, and how its chances held on rows that were left out.

    Raises:
        InputError: the shapes disagree, or fewer than 20 rows failed.
    """
    if rows_NF.shape != (len(failed_N), len(names)):
        raise InputError(f"expected {len(failed_N)} rows of {len(names)} columns, found {rows_NF.shape}")
    if failed_N.sum() < LEAST_FAILURES:
        raise InputError(
            f"{int(failed_N.sum())} rows failed; a chance of failure needs at least {LEAST_FAILURES}",
            hint="gather more history",
        )
    paired, ones = with_pairs(rows_NF), np.ones(len(failed_N))
    target = failed_N.astype(float)
    fold_N = _even_folds(failed_N, seed)
    raw_N = np.empty(len(failed_N))
    for fold in range(NUM_FOLDS):
        seen = fold_N != fold
        trees = grow(
            paired[seen], target[seen], ones[seen], objective="binary", seed=seed, recipe=RECIPE,
            num_threads=num_threads,
        )  # fmt: skip
        raw_N[~seen] = trees.predict(paired[~seen])
    held = reliability(held_out_chances(raw_N, failed_N, ones, fold_N), failed_N, ones)
    trees = grow(paired, target, ones, objective="binary", seed=seed, recipe=RECIPE, num_threads=num_threads)
    return RowModel(names=tuple(names), trees=trees, calibration=fit_calibration(raw_N, failed_N, ones)), held


def with_pairs(rows_NF: Floats) -> Floats:
    """The columns, and of few columns also every product and difference of two.

    Failures often come of two readings together (torque times speed is power; two temperatures differ), which trees
    approach in many small steps.

    >>> with_pairs(np.array([[2.0, 5.0]])).tolist()
    [[2.0, 5.0, 10.0, -3.0]]
    """
    num = rows_NF.shape[1]
    if num > MOST_PAIRED:
        return rows_NF
    left, right = np.triu_indices(num, 1)
    return np.hstack([rows_NF, rows_NF[:, left] * rows_NF[:, right], rows_NF[:, left] - rows_NF[:, right]])


def pair_names(names: Sequence[str]) -> list[tuple[str, ...]]:
    """The columns that each column of :func:`with_pairs` is made of."""
    alone: list[tuple[str, ...]] = [(name,) for name in names]
    if len(names) > MOST_PAIRED:
        return alone
    pairs = list(itertools.combinations(names, 2))
    return [*alone, *pairs, *pairs]


def _even_folds(failed_N: NDArray[np.bool_], seed: int) -> NDArray[np.intp]:
    """Folds with the same share of failures each."""
    rng, fold_N = np.random.default_rng(seed), np.empty(len(failed_N), dtype=np.intp)
    for value in (False, True):
        at = rng.permutation(np.flatnonzero(failed_N == value))
        fold_N[at] = np.arange(len(at)) % NUM_FOLDS
    return fold_N
