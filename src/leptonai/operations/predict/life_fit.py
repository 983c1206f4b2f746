"""Fitting remaining life: everything is chosen by predictions for units that were left out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.operations.predict.boosting import Trees, grow
from leptonai.operations.predict.conformal import fit_band
from leptonai.operations.predict.features import Features, fit_features
from leptonai.operations.predict.history import Floats, History, Unit
from leptonai.operations.predict.random_ridge import RandomRidge, fit_random_ridge
from leptonai.operations.predict.remaining_life import LifeModel, blend

NUM_FOLDS = 4
LEAST_UNITS = 12
"""Failed units below which nothing can be chosen or calibrated by leaving some out."""
MOST_ROWS = 16_000
"""Rows fitted to: neighbouring samples of a unit say almost the same, so a thinner grid loses little."""
CAP_SHARES = (*(number / 40 for number in range(16, 41)), 1.25, 1.5, 2.0)
"""Caps tried, as shares of the median life: finely where the error turns, since all share one factorisation."""
LOOK_SHARES = (0.6, 0.75, 1.0)
"""When units may be looked at: at any moment of the last this share of the median life."""
LOOK = 1.0
"""The share that the interval's coverage holds for."""
BLENDS = tuple(number / 10 for number in range(11))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rows:
    """Thinned rows of units: features, life left, unit's number, and weights that make units equal."""

    features_NF: Floats
    left_N: Floats
    unit_N: NDArray[np.intp]
    weights_N: Floats

    def where(self, chosen_N: NDArray[np.bool_]) -> Rows:
        """Some of the rows."""
        return Rows(
            features_NF=self.features_NF[chosen_N],
            left_N=self.left_N[chosen_N],
            unit_N=self.unit_N[chosen_N],
            weights_N=self.weights_N[chosen_N],
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What was chosen out of fold: the cap, the blend, and the errors (root mean square) of each part."""

    cap: float
    share_of_ridge: float
    rmse_ridge: float
    rmse_trees: float
    rmse_blend: float


def fit_remaining_life(
    history: History,
    *,
    seed: int = 0,
    coverage: float = 0.9,
    num_threads: int = 1,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[LifeModel, Chosen]:
    """A model of remaining life from units that ran to failure; censored units are not used.

    Args:
        history: of units of one kind.
        coverage: of the interval, in (0, 1).
        progress: called with steps done and steps in all.

    Raises:
        InputError: too few failed units, or a bad coverage.
    """
    units = history.failed()
    if len(units) < LEAST_UNITS:
        raise InputError(
            f"{len(units)} units of the history failed; remaining life needs at least {LEAST_UNITS}",
            hint="mark failures in the column 'end', or gather more history",
        )
    median_life = float(np.median([unit.times_T[-1] - unit.times_T[0] for unit in units]))
    caps = median_life * np.array(CAP_SHARES)
    fold_U = np.random.default_rng(seed).permutation(len(units)) % NUM_FOLDS
    held: list[tuple[Rows, Rows]] = []
    ridges, trees = [], []
    for fold in range(NUM_FOLDS):
        seen = [unit for unit, of in zip(units, fold_U, strict=True) if of != fold]
        left_out = [unit for unit, of in zip(units, fold_U, strict=True) if of == fold]
        features = fit_features(history.only(seen), seed=seed)
        held.append((make_rows(features, seen), make_rows(features, left_out)))
        ridge = fit_ridge(held[-1][0], caps, seed)
        ridges.append(ridge.predict(held[-1][1].features_NF))
        progress(fold + 1, 2 * NUM_FOLDS + 1)
    number = [np.flatnonzero(fold_U == fold) for fold in range(NUM_FOLDS)]
    out = _joined([rows for _, rows in held], number)
    ridge_NO = np.vstack(ridges)
    at = choose_cap(ridge_NO, out, median_life)
    for fold, (seen_rows, out_rows) in enumerate(held):
        grown = grow_trees(seen_rows, caps[at], seed, num_threads)
        trees.append(grown.predict(out_rows.features_NF))
        progress(NUM_FOLDS + fold + 1, 2 * NUM_FOLDS + 1)
    trees_N = np.concatenate(trees)
    looked = out.left_N <= LOOK * median_life
    share, chosen = choose_blend(ridge_NO[:, at], trees_N, out, looked, float(caps[at]))
    predicted_N = blend(ridge_NO[:, at], trees_N, share)
    band = fit_band(
        predicted_N[looked], out.left_N[looked], out.unit_N[looked], _per_unit(out.unit_N[looked]),
        coverage=coverage, seed=seed,
    )  # fmt: skip
    features = fit_features(history.only(units), seed=seed)
    rows = make_rows(features, units)
    model = LifeModel(
        features=features,
        setting_names=history.setting_names,
        trees=grow_trees(rows, caps[at], seed, num_threads),
        ridge=fit_ridge(rows, caps[at : at + 1], seed),
        share_of_ridge=share,
        cap=float(caps[at]),
        band=band,
    )
    progress(2 * NUM_FOLDS + 1, 2 * NUM_FOLDS + 1)
    return model, chosen


def make_rows(features: Features, units: Sequence[Unit]) -> Rows:
    """Rows of every k-th sample from where there is enough history on."""
    step = max(1, -(-sum(unit.num_samples for unit in units) // MOST_ROWS))
    parts, left, number = [], [], []
    for at, unit in enumerate(units):
        start = min(features.num_needed - 1, unit.num_samples - 1)
        parts.append(features.of_unit(unit)[start::step])
        left.append(unit.remaining_T()[start::step])
        number.append(np.full(len(left[-1]), at))
    unit_N = np.concatenate(number)
    return Rows(
        features_NF=np.vstack(parts), left_N=np.concatenate(left), unit_N=unit_N, weights_N=_per_unit(unit_N)
    )


def fit_ridge(rows: Rows, caps: Floats, seed: int) -> RandomRidge:
    """One output a cap."""
    targets_NO = np.minimum(rows.left_N[:, None], caps)
    return fit_random_ridge(rows.features_NF, targets_NO, rows.weights_N, seed=seed)


def grow_trees(rows: Rows, cap: float, seed: int, num_threads: int) -> Trees:
    """Trees for one cap."""
    targets_N = np.minimum(rows.left_N, cap)
    return grow(
        rows.features_NF, targets_N, rows.weights_N, objective="l2", seed=seed, num_threads=num_threads
    )


def choose_cap(ridge_NO: Floats, out: Rows, median_life: float) -> int:
    """The cap whose error is at worst the smallest multiple of the best cap's, whenever units are looked at.

    Nobody knows when a unit will be asked about. Asked late, a low cap is best; asked at any moment, a high one;
    so the choice guards against each.
    """
    regret = []
    for share in LOOK_SHARES:
        looked = out.left_N <= share * median_life
        weights_N = _per_unit(out.unit_N[looked])
        errors = np.array([_rmse(column[looked], out.left_N[looked], weights_N) for column in ridge_NO.T])
        regret.append(errors / errors.min())
    return int(np.argmin(np.max(regret, axis=0)))


def choose_blend(
    ridge_N: Floats, trees_N: Floats, out: Rows, looked_N: NDArray[np.bool_], cap: float
) -> tuple[float, Chosen]:
    """The share of the ridge with the smallest error out of fold against capped life."""
    left_N, weights_N = np.minimum(out.left_N[looked_N], cap), _per_unit(out.unit_N[looked_N])
    ridge_N, trees_N = ridge_N[looked_N], trees_N[looked_N]
    errors = [_rmse(blend(ridge_N, trees_N, share), left_N, weights_N) for share in BLENDS]
    best = int(np.argmin(errors))
    chosen = Chosen(
        cap=cap,
        share_of_ridge=BLENDS[best],
        rmse_ridge=errors[-1],
        rmse_trees=errors[0],
        rmse_blend=errors[best],
    )
    return BLENDS[best], chosen


def _joined(parts: Sequence[Rows], numbers: Sequence[NDArray[np.intp]]) -> Rows:
    unit_N = np.concatenate([number[rows.unit_N] for rows, number in zip(parts, numbers, strict=True)])
    return Rows(
        features_NF=np.empty((len(unit_N), 0)),
        left_N=np.concatenate([rows.left_N for rows in parts]),
        unit_N=unit_N,
        weights_N=_per_unit(unit_N),
    )


def _per_unit(unit_N: NDArray[np.intp]) -> Floats:
    """Weights that add up to the same for every unit and to the number of rows in all."""
    _, at_N, counts = np.unique(unit_N, return_inverse=True, return_counts=True)
    return np.asarray(len(unit_N) / len(counts) / counts[at_N])


def _rmse(predicted_N: Floats, actual_N: Floats, weights_N: Floats) -> float:
    return float(np.sqrt(np.average((predicted_N - actual_N) ** 2, weights=weights_N)))
