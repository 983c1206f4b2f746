"""Fitting chances of failure: person-period rows, units left out, calibration and how it held."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.operations.predict.boosting import Recipe, Trees, grow
from leptonai.operations.predict.calibrated import (
    Reliability,
    fit_calibration,
    held_out_chances,
    reliability,
    unit_folds,
)
from leptonai.operations.predict.features import LONGEST_WINDOW, Features, fit_features
from leptonai.operations.predict.hazard import HazardModel, raw_chances
from leptonai.operations.predict.history import Floats, History, Unit
from leptonai.operations.predict.survival import outcome_weights
from leptonai.operations.predict.tables import base_name

NUM_FOLDS = 4
LEAST_FAILURES = 12
"""Failures below which nothing can be calibrated by leaving some out."""
MOST_ROWS = 10_000
"""Moments looked at in each stretch before the end (within each horizon, and beyond the last)."""
RECIPE = Recipe(num_trees=200, learning_rate=0.05, num_leaves=15, min_rows=30, share_of_features=0.4)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moments:
    """Moments in the lives of units: features, time left, how it ended, and how many moments each stands for."""

    features_NF: Floats
    left_N: Floats
    failed_N: NDArray[np.bool_]
    weights_N: Floats


def fit_hazard(
    history: History,
    horizons: Sequence[float],
    *,
    seed: int = 0,
    num_threads: int = 1,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[HazardModel, tuple[Reliability, ...]]:
    """A model of the chance of failing within each horizon, and how its chances held on units left out.

    Units that never failed count too. A machine's lives are always left out together.

    Args:
        horizons: increasing, in the history's unit of time.
        progress: called with steps done and steps in all.

    Raises:
        InputError: too few failures, or horizons that do not increase.

    Source: discrete-time hazards, Singer & Willett 1993; moments as landmarks, van Houwelingen 2007.
    """
    ends = np.asarray(horizons, dtype=float)
    if len(ends) == 0 or ends[0] <= 0 or (np.diff(ends) <= 0).any() or not np.isfinite(ends).all():
        raise InputError(f"horizons must be positive and increase, found {list(horizons)}")
    num_failed = len(history.failed())
    machines = {base_name(unit.name) for unit in history.failed()}
    if num_failed < LEAST_FAILURES or len(machines) < NUM_FOLDS:
        raise InputError(
            f"{num_failed} failures of {len(machines)} unit(s); chances of failure need at least {LEAST_FAILURES} "
            f"failures of {NUM_FOLDS} units",
            hint="mark failures in the column of ends, or gather more history",
        )
    windows = windows_for(history.units, float(ends[0]))
    fold_U = unit_folds([unit.name for unit in history.units], NUM_FOLDS, seed, base_name)
    held: list[tuple[Moments, Floats]] = []
    for fold in range(NUM_FOLDS):
        seen = [unit for unit, of in zip(history.units, fold_U, strict=True) if of != fold]
        left_out = [unit for unit, of in zip(history.units, fold_U, strict=True) if of == fold]
        features = fit_features(history.only(seen), seed=seed, windows=windows)
        trees = _grow(moments(features, seen, ends), ends, seed, num_threads)
        tested = moments(features, left_out, ends)
        held.append((tested, raw_chances(trees, tested.features_NF, len(ends))))
        progress(fold + 1, NUM_FOLDS + 1)
    calibrations, held_up = [], []
    fold_N = np.concatenate([np.full(len(raw_NK), fold) for fold, (_, raw_NK) in enumerate(held)])
    left_N, failed_N, weights_N = (
        np.concatenate([getattr(each, name) for each, _ in held])
        for name in ("left_N", "failed_N", "weights_N")
    )
    for at, end in enumerate(ends):
        raw_N = np.concatenate([raw_NK[:, at] for _, raw_NK in held])
        hit_N, known_N = outcome_weights(left_N, failed_N, weights_N, float(end))
        calibrations.append(fit_calibration(raw_N[known_N > 0], hit_N[known_N > 0], known_N[known_N > 0]))
        held_up.append(reliability(held_out_chances(raw_N, hit_N, known_N, fold_N), hit_N, known_N))
    features = fit_features(history, seed=seed, windows=windows)
    model = HazardModel(
        features=features,
        setting_names=history.setting_names,
        horizons=tuple(float(end) for end in ends),
        trees=_grow(moments(features, history.units, ends), ends, seed, num_threads),
        calibrations=tuple(calibrations),
    )
    progress(NUM_FOLDS + 1, NUM_FOLDS + 1)
    return model, tuple(held_up)


def windows_for(units: Sequence[Unit], horizon: float) -> tuple[int, int, int]:
    """Windows of features, in samples: a quarter of the shortest horizon, all of it, and four times it.

    What comes before a failure within an hour is seen in minutes to hours, whatever the length of the history.
    """
    steps = np.concatenate([np.diff(unit.times_T) for unit in units])
    of_horizon = horizon / float(np.median(steps)) if len(steps) else 1.0
    short = int(min(max(2, round(of_horizon / 4)), LONGEST_WINDOW // 16))
    middle = int(min(max(short + 2, round(of_horizon)), LONGEST_WINDOW // 4))
    return short, middle, int(min(max(middle + 4, round(4 * of_horizon)), LONGEST_WINDOW))


def moments(features: Features, units: Sequence[Unit], ends: Floats) -> Moments:
    """Moments of the units, thinned: those before a failure less than the many far from one."""
    left = [unit.remaining_T() for unit in units]
    near = [
        np.searchsorted(ends, of) if unit.failed else np.full(len(of), len(ends))
        for unit, of in zip(units, left, strict=True)
    ]
    enough = [np.arange(len(of)) >= features.num_needed - 1 for of in left]
    counts = sum(
        (np.bincount(of[ok], minlength=len(ends) + 1) for of, ok in zip(near, enough, strict=True)),
        np.zeros(len(ends) + 1, dtype=int),
    )
    every = np.maximum(-(-counts // MOST_ROWS), 1)
    passed = np.zeros(len(ends) + 1, dtype=int)
    parts: list[tuple[Floats, Floats, NDArray[np.bool_], Floats]] = []
    for unit, of, stretch, ok in zip(units, left, near, enough, strict=True):
        kept = np.zeros(len(of), dtype=bool)
        for number in range(len(ends) + 1):
            at = np.flatnonzero((stretch == number) & ok)
            kept[at[(passed[number] + np.arange(len(at))) % every[number] == 0]] = True
            passed[number] += len(at)
        if kept.any():
            rows = features.of_unit(unit)[kept]
            parts.append(
                (rows, of[kept], np.full(int(kept.sum()), unit.failed), every[stretch[kept]].astype(float))
            )
    if not parts:
        raise InputError(
            f"no unit has the {features.num_needed} samples that a chance of failure needs",
            hint="gather more history, or ask for shorter horizons",
        )
    rows_NF, left_N, failed_N, weights_N = (np.concatenate(each) for each in zip(*parts, strict=True))
    return Moments(features_NF=rows_NF, left_N=left_N, failed_N=failed_N, weights_N=weights_N)


def _grow(known: Moments, ends: Floats, seed: int, num_threads: int) -> Trees:
    """Trees over person-period rows: a moment has a row for every piece of time that it was watched through."""
    rows, targets, weights = [], [], []
    for piece, end in enumerate(ends):
        start = 0.0 if piece == 0 else ends[piece - 1]
        fails_N = known.failed_N & (known.left_N > start) & (known.left_N <= end)
        if piece == 0:
            fails_N |= known.failed_N & (known.left_N == 0)
        at_risk_N = fails_N | (known.left_N > end)
        part = known.features_NF[at_risk_N]
        rows.append(np.column_stack([part, np.full(len(part), float(piece))]))
        targets.append(fails_N[at_risk_N].astype(float))
        weights.append(known.weights_N[at_risk_N])
    return grow(
        np.vstack(rows), np.concatenate(targets), np.concatenate(weights),
        objective="binary", seed=seed, recipe=RECIPE, num_threads=num_threads,
    )  # fmt: skip
