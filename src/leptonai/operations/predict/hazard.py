"""The chance that a unit fails within a horizon, and which signals speak for it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leptonai.operations.predict.boosting import Trees
from leptonai.operations.predict.calibrated import Calibration
from leptonai.operations.predict.features import Features
from leptonai.operations.predict.history import Floats, History, Unit
from leptonai.operations.predict.remaining_life import NotEnough, Reason, check_columns, reasons


@dataclass(frozen=True, slots=True, kw_only=True)
class Risk:
    """What may befall one unit after its last sample.

    Args:
        unit: its name.
        chances: of failing within each horizon of the model, increasing.
        reasons: the signals that moved the odds most, the strongest first; ``moved`` is in natural logarithms of
            the odds: 0.7 doubles them, -0.7 halves them.
    """

    unit: str
    chances: tuple[float, ...]
    reasons: tuple[Reason, ...]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HazardModel:
    """Chances of failure by discrete-time hazards; :func:`~leptonai.operations.predict.hazard_fit.fit_hazard` makes it.

    Time from now on is cut at the horizons. Trees give, for each piece, the chance to fail in it for a unit that
    reaches it; multiplied up they give raw chances, which are then calibrated by units that were left out.

    Args:
        horizons: increasing, in the history's unit of time.
        calibrations: one a horizon.
    """

    features: Features
    setting_names: tuple[str, ...]
    horizons: tuple[float, ...]
    trees: Trees
    calibrations: tuple[Calibration, ...]

    def predict(self, history: History) -> tuple[Risk | NotEnough, ...]:
        """The chances of each unit after its last sample.

        Raises:
            InputError: the history has other columns than the one the model was fitted on.
        """
        check_columns(history, self.features.signal_names, self.setting_names)
        return tuple(self._of_unit(unit) for unit in history.units)

    def _of_unit(self, unit: Unit) -> Risk | NotEnough:
        needed = self.features.num_needed
        if unit.num_samples < needed:
            return NotEnough(unit=unit.name, num_samples=unit.num_samples, num_needed=needed)
        row_1F = self.features.of_unit(unit)[-1:]
        raw_1K = raw_chances(self.trees, row_1F, len(self.horizons))
        chances = [each.chance(raw_1K[:, at])[0] for at, each in enumerate(self.calibrations)]
        moved_KF = self.trees.contributions(_with_piece(row_1F, len(self.horizons)))
        return Risk(
            unit=unit.name,
            chances=tuple(float(chance) for chance in np.maximum.accumulate(chances)),
            reasons=reasons(self.features.columns(), moved_KF[:, :-1].mean(0)),
        )


def raw_chances(trees: Trees, rows_NF: Floats, num_pieces: int) -> Floats:
    """(N, K): the chance of failing before the end of each piece, before calibration."""
    hazards_NK = trees.predict(_with_piece(rows_NF, num_pieces)).reshape(len(rows_NF), num_pieces)
    return np.asarray(1 - np.cumprod(1 - hazards_NK, axis=1))


def _with_piece(rows_NF: Floats, num_pieces: int) -> Floats:
    """Each row once a piece, the piece's number as its last column."""
    pieces = np.tile(np.arange(num_pieces, dtype=float), len(rows_NF))
    return np.column_stack([np.repeat(rows_NF, num_pieces, axis=0), pieces])
