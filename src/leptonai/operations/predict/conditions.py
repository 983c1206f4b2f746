"""Operating conditions: readings made comparable across them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leptonai.operations.predict.history import Floats, Unit

MOST_CONDITIONS = 12
"""More would leave too few samples in each for a mean and a spread."""
ENOUGH_OF_BEST = 0.01
"""The fewest conditions within this share of the best choice's unexplained variance are taken."""
_ROUNDS = 25  # of Lloyd's algorithm; centres of settings that really cluster stand still after a few
_STARTS = 8  # of k-means
_MOST_ROWS = 2000  # looked at for choosing: enough for twelve centres


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Conditions:
    """Centres of operating conditions, with each signal's level and spread in each.

    Legend: K conditions, C settings, S signals.
    """

    offset_C: Floats
    scale_C: Floats
    centres_KC: Floats
    level_KS: Floats
    spread_KS: Floats

    def label(self, settings_TC: Floats) -> NDArray[np.intp]:
        """The nearest condition of each sample."""
        return _nearest((settings_TC - self.offset_C) / self.scale_C, self.centres_KC)

    def standardised(self, unit: Unit) -> Floats:
        """Readings (T, S) in spreads from the level of their condition; a signal without spread gives 0."""
        label_T = self.label(unit.settings_TC)
        spread_TS = self.spread_KS[label_T]
        away_TS = unit.signals_TS - self.level_KS[label_T]
        return np.asarray(
            np.where(spread_TS > 0, away_TS / np.where(spread_TS > 0, spread_TS, 1), 0 * away_TS)
        )


def fit_conditions(units: Sequence[Unit], *, seed: int) -> Conditions:
    """Conditions of training units; how many is chosen by what they explain in units left out.

    Half of the units give centres and levels, the other half says how much of the signals' variance is left; of
    the numbers tried, the smallest that comes close to the best is taken and fitted to all units.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(units))
    if units[0].settings_TC.shape[1] == 0 or len(units) < 4:
        return _with_conditions(units, 1, seed)
    half = [[units[at] for at in order[start::2]] for start in (0, 1)]
    left: dict[int, float] = {}
    for num in range(1, MOST_CONDITIONS + 1):
        left[num] = _unexplained(_with_conditions(half[0], num, seed), half[1])
    best = min(left.values())
    num = next(num for num, value in left.items() if value <= best + ENOUGH_OF_BEST * left[1])
    return _with_conditions(units, num, seed)


def _with_conditions(units: Sequence[Unit], num: int, seed: int) -> Conditions:
    settings_NC = np.vstack([unit.settings_TC for unit in units])
    signals_NS = np.vstack([unit.signals_TS for unit in units])
    offset_C, scale_C = settings_NC.mean(0), settings_NC.std(0)
    scale_C = np.where(scale_C > 1e-9 * (1 + np.abs(offset_C)), scale_C, np.inf)
    scaled_NC = (settings_NC - offset_C) / scale_C
    centres_KC = _centres(scaled_NC[:: max(1, len(scaled_NC) // _MOST_ROWS)], num, seed)
    label_N = _nearest(scaled_NC, centres_KC)
    whole_S, spread_S = _moments(signals_NS)
    level_KS, spread_KS = np.tile(whole_S, (num, 1)), np.tile(spread_S, (num, 1))
    for label in range(num):
        if (label_N == label).sum() >= 2:
            level_KS[label], spread_KS[label] = _moments(signals_NS[label_N == label])
    return Conditions(
        offset_C=offset_C, scale_C=scale_C, centres_KC=centres_KC, level_KS=level_KS, spread_KS=spread_KS
    )


def _moments(signals_NS: Floats) -> tuple[Floats, Floats]:
    """Mean and spread of each column; rounding noise of a constant counts as no spread, no readings as mean 0."""
    seen_S = np.maximum(np.isfinite(signals_NS).sum(0), 1)
    mean_S = np.nansum(signals_NS, 0) / seen_S
    spread_S = np.sqrt(np.nansum((signals_NS - mean_S) ** 2, 0) / seen_S)
    return mean_S, np.where(spread_S > 1e-9 * (1 + np.abs(mean_S)), spread_S, 0.0)


def _unexplained(conditions: Conditions, units: Sequence[Unit]) -> float:
    """Share of the signals' variance that is left within conditions, over the signals that vary."""
    signals_NS = np.vstack([unit.signals_TS for unit in units])
    level_NS = np.vstack([conditions.level_KS[conditions.label(unit.settings_TC)] for unit in units])
    _, spread_S = _moments(signals_NS)
    kept = spread_S > 0
    if not kept.any():
        return 0.0
    gap_NS = ((signals_NS - level_NS)[:, kept] / spread_S[kept]) ** 2
    return float(np.nanmean(gap_NS))


def _centres(rows_NC: Floats, num: int, seed: int) -> Floats:
    """The best of several k-means runs: one alone often leaves two conditions merged and another split."""
    rng = np.random.default_rng(seed)
    tries = [_one_k_means(rows_NC, num, rng) for _ in range(_STARTS if num > 1 else 1)]
    return min(tries, key=lambda centres_KC: float(_squares(rows_NC, centres_KC).min(1).sum()))


def _one_k_means(rows_NC: Floats, num: int, rng: np.random.Generator) -> Floats:
    """k-means with far-apart first centres (Arthur & Vassilvitskii 2007)."""
    centres_KC = rows_NC[[rng.integers(len(rows_NC))]]
    for _ in range(num - 1):
        far_N = _squares(rows_NC, centres_KC).min(1)
        chance_N = far_N / far_N.sum() if far_N.sum() > 0 else np.full(len(rows_NC), 1 / len(rows_NC))
        centres_KC = np.vstack([centres_KC, rows_NC[rng.choice(len(rows_NC), p=chance_N)]])
    for _ in range(_ROUNDS):
        label_N = _nearest(rows_NC, centres_KC)
        moved = [
            rows_NC[label_N == at].mean(0) if (label_N == at).any() else centres_KC[at] for at in range(num)
        ]
        if np.array_equal(moved, centres_KC):
            break
        centres_KC = np.array(moved)
    return np.asarray(centres_KC)


def _nearest(rows_NC: Floats, centres_KC: Floats) -> NDArray[np.intp]:
    return np.asarray(_squares(rows_NC, centres_KC).argmin(1))


def _squares(rows_NC: Floats, centres_KC: Floats) -> Floats:
    return np.asarray(((rows_NC[:, None, :] - centres_KC[None]) ** 2).sum(2))
