"""A fitted forecast of equipment: chances of failure and remaining life together, as one thing that is saved."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from leptonai.core.errors import InputError
from leptonai.core.units import parse_seconds
from leptonai.operations.predict.calibrated import Reliability
from leptonai.operations.predict.hazard import HazardModel, Risk
from leptonai.operations.predict.hazard_fit import fit_hazard
from leptonai.operations.predict.history import History
from leptonai.operations.predict.life_fit import Chosen, fit_remaining_life
from leptonai.operations.predict.remaining_life import LifeModel, NotEnough, Outlook
from leptonai.operations.predict.saved import load, save
from leptonai.operations.predict.tables import Columns, Recorded, base_name, current_lives

HORIZONS = ("1h", "24h", "7d")
"""Of histories with dates."""
SHARES_OF_LIFE = (0.05, 0.25, 0.5)
"""Horizons of histories in other units of time, as shares of the median life of what failed."""
_TIME_UNITS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Forecast:
    """Both models, and what is needed to read another file the same way.

    Args:
        horizon_words: the horizons as people wrote them.
        time_unit: of times and lives, as a word.
    """

    columns: Columns
    horizon_words: tuple[str, ...]
    time_unit: str
    hazard: HazardModel
    life: LifeModel

    def save(self, path: Path) -> None:
        """Write it to a file.

        Raises:
            InputError: it cannot be written.
        """
        save(self, path)

    @classmethod
    def load(cls, path: Path) -> Forecast:
        """Read it from a file.

        Raises:
            InputError: it is no forecast, or is damaged.
        """
        return load(cls, path)

    def score(self, history: History) -> tuple[Prospect | NotEnough, ...]:
        """What is expected of each unit that still works, the likeliest failure first, then those that are too new.

        Raises:
            InputError: the history has other columns than the one it was fitted on.
        """
        working = current_lives(history)
        made: list[Prospect] = []
        short: list[NotEnough] = []
        for risk, outlook in zip(self.hazard.predict(working), self.life.predict(working), strict=True):
            if isinstance(risk, NotEnough):
                short.append(risk)
            elif isinstance(outlook, NotEnough):
                short.append(outlook)
            else:
                made.append(Prospect(unit=base_name(risk.unit), risk=risk, outlook=outlook))
        made.sort(
            key=lambda each: (tuple(-chance for chance in each.risk.chances[::-1]), each.outlook.remaining)
        )
        return (*made, *short)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """What is expected of one unit."""

    unit: str
    risk: Risk
    outlook: Outlook


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """How a forecast held on units that were left out while fitting.

    Args:
        reliabilities: one a horizon.
        life: errors of remaining life.
    """

    num_units: int
    num_failures: int
    reliabilities: tuple[Reliability, ...]
    life: Chosen


def fit_forecast(
    recorded: Recorded,
    columns: Columns,
    *,
    horizons: Sequence[str] = (),
    time_unit: str = "",
    coverage: float = 0.9,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> tuple[Forecast, Held]:
    """Fit both models to a history.

    Args:
        horizons: such as ``24h``, or numbers in the history's unit of time; none: :data:`HORIZONS` where time is
            known, else shares of the median life.
        time_unit: of the times if they are no dates: ``s``, ``min``, ``h``, ``d``, or any word such as ``cycles``.
        coverage: of the interval of remaining life, in (0, 1).
        progress: called with steps done and steps in all.

    Raises:
        InputError: too few failures, or a horizon that is no time.
    """
    unit = "s" if recorded.dated else (time_unit or "units of time")
    history = recorded.history
    words = tuple(horizons) or _usual(history, unit)
    ends = [_horizon(word, unit) for word in words]
    hazard, reliabilities = fit_hazard(
        history, ends, seed=seed, progress=lambda done, of: progress(done, of + 9)
    )
    life, chosen = fit_remaining_life(
        history, seed=seed, coverage=coverage, progress=lambda done, of: progress(5 + done, 5 + of)
    )
    made = Forecast(columns=columns, horizon_words=words, time_unit=unit, hazard=hazard, life=life)
    num_units = len({base_name(each.name) for each in history.units})
    held = Held(
        num_units=num_units, num_failures=len(history.failed()), reliabilities=reliabilities, life=chosen
    )
    return made, held


def _usual(history: History, unit: str) -> tuple[str, ...]:
    if unit in _TIME_UNITS:
        return HORIZONS
    lives = [each.times_T[-1] - each.times_T[0] for each in history.failed()]
    if not lives:
        return ("1",)  # the fit says that nothing failed
    return tuple(f"{float(f'{share * np.median(lives):.1g}'):g}" for share in SHARES_OF_LIFE)


def _horizon(word: str, unit: str) -> float:
    if _is_number(word):
        return float(word)
    if unit not in _TIME_UNITS:
        raise InputError(
            f"the horizon {word!r} needs times whose unit is known",
            hint="say --time-unit s, min, h or d, or give horizons as numbers in the history's unit of time",
        )
    days = word.strip().removesuffix("d")
    hours = f"{float(days) * 24}h" if days != word.strip() and _is_number(days) else word
    return parse_seconds(hours) / _TIME_UNITS[unit]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
