"""Remaining life of units with an interval of stated coverage, and which signals speak for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from leptonai.core.errors import InputError
from leptonai.operations.predict.boosting import Trees
from leptonai.operations.predict.conformal import Band
from leptonai.operations.predict.features import Features
from leptonai.operations.predict.history import Floats, History, Unit
from leptonai.operations.predict.random_ridge import RandomRidge

NUM_REASONS = 3
"""Signals named with a prediction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reason:
    """A signal's part in a prediction: by how much it moved it, in the unit of time; negative: less life left."""

    signal: str
    moved: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What is expected of one unit.

    Args:
        unit: its name.
        remaining: expected time until failure, in the history's unit of time, at least 0.
        low, high: ends of the interval that holds the true value with chance ``coverage``.
        reasons: the signals that moved it most, the strongest first.
    """

    unit: str
    remaining: float
    low: float
    high: float
    coverage: float
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NotEnough:
    """Not enough history: the unit has fewer samples than a prediction needs."""

    unit: str
    num_samples: int
    num_needed: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LifeModel:
    """A fitted model of remaining life; :func:`leptonai.operations.predict.life_fit.fit_remaining_life` makes it.

    Args:
        cap: longer lives counted as this in training: further ahead the signals say little.
        share_of_ridge: of the blend; the rest is the trees'.
        band: the interval's shape.
    """

    features: Features
    setting_names: tuple[str, ...]
    trees: Trees
    ridge: RandomRidge
    share_of_ridge: float
    cap: float
    band: Band

    def predict(self, history: History) -> tuple[Outlook | NotEnough, ...]:
        """What is expected of each unit after its last sample.

        Raises:
            InputError: the history has other columns than the one the model was fitted on.
        """
        check_columns(history, self.features.signal_names, self.setting_names)
        return tuple(self._of_unit(unit) for unit in history.units)

    def expected(self, rows_NF: Floats) -> Floats:
        """Remaining life for rows of features."""
        return blend(self.ridge.predict(rows_NF)[:, 0], self.trees.predict(rows_NF), self.share_of_ridge)

    def _of_unit(self, unit: Unit) -> Outlook | NotEnough:
        if unit.num_samples < self.features.num_needed:
            return NotEnough(
                unit=unit.name, num_samples=unit.num_samples, num_needed=self.features.num_needed
            )
        row_1F = self.features.of_unit(unit)[-1:]
        expected_1 = self.expected(row_1F)
        low_1, high_1 = self.band.interval(expected_1)
        return Outlook(
            unit=unit.name,
            remaining=float(expected_1[0]),
            low=float(low_1[0]),
            high=float(high_1[0]),
            coverage=self.band.coverage,
            reasons=reasons(self.features.columns(), self.trees.contributions(row_1F)[0]),
        )


def blend(ridge_N: Floats, trees_N: Floats, share_of_ridge: float) -> Floats:
    """The weighted mean of both, at least 0."""
    return np.maximum(share_of_ridge * ridge_N + (1 - share_of_ridge) * trees_N, 0.0)


def reasons(columns: Sequence[tuple[str, str]], moved_F: Floats) -> tuple[Reason, ...]:
    """The strongest signals, the parts of each signal's features added up.

    >>> reasons([("heat", "mean"), ("heat", "slope"), ("noise", "mean")], np.array([-3.0, -1.0, 2.0]))
    (Reason(signal='heat', moved=-4.0), Reason(signal='noise', moved=2.0))
    """
    total: dict[str, float] = {}
    for (signal, _), moved in zip(columns, moved_F, strict=True):
        total[signal] = total.get(signal, 0.0) + float(moved)
    order = sorted(total, key=lambda signal: -abs(total[signal]))
    return tuple(
        Reason(signal=signal, moved=total[signal]) for signal in order[:NUM_REASONS] if total[signal] != 0
    )


def check_columns(history: History, signal_names: Sequence[str], setting_names: Sequence[str]) -> None:
    """Refuse a history with other columns than the model's.

    Raises:
        InputError: names or their order differ.
    """
    for what, found, wanted in (
        ("signals", history.signal_names, tuple(signal_names)),
        ("settings", history.setting_names, tuple(setting_names)),
    ):
        if found != wanted:
            odd = sorted(set(found) ^ set(wanted))
            raise InputError(
                f"the history's {what} are not those the model was fitted on"
                + (f": {', '.join(odd[:5])}" if odd else ": their order differs"),
                hint="score files with the same columns, or fit anew",
            )
