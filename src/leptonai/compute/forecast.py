"""What a plan promises of a step, and how that stands against what a run measured."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from leptonai.core.errors import InputError
from leptonai.core.values import value_to_json

GROUPS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "input": ("input",),
        "compute": ("forward", "backward", "recompute", "host", "pipeline bubble"),
        "exchange": ("tensor exchange", "pipeline exchange", "gradient exchange", "parameter exchange"),
        "update": ("update",),
        "checkpoint": ("checkpoint",),
    }
)
"""What a worker can tell apart while it runs, and the predicted phases that each covers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseForecast:
    """One phase of a step.

    Args:
        name: as in :data:`leptonai.compute.prediction.outcome.PHASES`.
        seconds: of a step, that nothing else hides, >= 0.
        source: what the number rests on, in words; may be empty.
    """

    name: str
    seconds: float
    source: str = ""

    def __post_init__(self) -> None:
        if not (self.seconds >= 0 and math.isfinite(self.seconds)):
            raise InputError(f"PhaseForecast {self.name!r}: expected seconds >= 0, found {self.seconds}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast:
    """One step, predicted.

    Args:
        step_seconds: of one optimiser step, > 0.
        low_seconds: nine measurements in ten should lie between this
        high_seconds: and this.
        phases: where the time goes; they add up to the step.
        memory_bytes: of the fullest worker at its peak; 0: not known.
        rates: where the machine's rates come from, in words.
        assumptions: everything else it rests on, one sentence each.
    """

    step_seconds: float
    low_seconds: float
    high_seconds: float
    phases: tuple[PhaseForecast, ...] = ()
    memory_bytes: float = 0.0
    rates: str = ""
    assumptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        ends = (self.low_seconds, self.step_seconds, self.high_seconds)
        if not (0 < ends[0] <= ends[1] <= ends[2] < math.inf):
            raise InputError(f"Forecast: expected 0 < low <= step <= high, found {ends}")

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values."""
        values: dict[str, Any] = value_to_json(self)
        return values

    def groups(self) -> dict[str, float]:
        """Seconds by what a run can measure, :data:`GROUPS`."""
        found = {
            group: sum(phase.seconds for phase in self.phases if phase.name in names)
            for group, names in GROUPS.items()
        }
        return {group: seconds for group, seconds in found.items() if seconds}


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseCheck:
    """One row of predicted against measured; None where one side does not know."""

    name: str
    predicted_seconds: float | None
    measured_seconds: float | None

    @property
    def ratio(self) -> float | None:
        """Measured over predicted; None where either is missing or nothing was predicted."""
        if self.measured_seconds is None or not self.predicted_seconds:
            return None
        return self.measured_seconds / self.predicted_seconds


def check(forecast: Forecast, measured: Mapping[str, float], step_seconds: float) -> tuple[PhaseCheck, ...]:
    """Hold a forecast against a run, a row for each phase and ``step`` last.

    Args:
        measured: seconds of a step by phase of a worker; what it leaves of the step is told as ``other``.
        step_seconds: measured, of one step.

    >>> made = Forecast(step_seconds=2.0, low_seconds=1.0, high_seconds=3.0,
    ...     phases=(PhaseForecast(name="forward", seconds=0.5), PhaseForecast(name="backward", seconds=1.5)))
    >>> [(row.name, row.ratio) for row in check(made, {"compute": 3.0}, 4.0)]
    [('compute', 1.5), ('other', None), ('step', 2.0)]
    """
    predicted = forecast.groups()
    names = [name for name in GROUPS if name in predicted or measured.get(name)]
    rows = [
        PhaseCheck(name=name, predicted_seconds=predicted.get(name), measured_seconds=measured.get(name))
        for name in names
    ]
    rest = step_seconds - sum(measured.values())
    if measured and rest > 0:
        rows.append(PhaseCheck(name="other", predicted_seconds=None, measured_seconds=rest))
    rows.append(
        PhaseCheck(name="step", predicted_seconds=forecast.step_seconds, measured_seconds=step_seconds)
    )
    return tuple(rows)
