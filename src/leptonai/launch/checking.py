"""How a run's plan held: its forecast against its journal, and what the machine's runs have taught so far."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leptonai.compute.forecast import Forecast, PhaseCheck
from leptonai.core.errors import InputError
from leptonai.launch.forecasting import compare, correction_of
from leptonai.launch.rates import open_rates
from leptonai.launch.rundir import RunDirectory
from leptonai.launch.tally import Tally


@dataclass(frozen=True, slots=True, kw_only=True)
class RunCheck:
    """One run's plan, checked.

    Args:
        run_id: which run.
        forecast: what its plan promised.
        rows: predicted against measured.
        steps_timed: steps that were measured.
        learnt: what predictions on this machine now take into account, a sentence each.
    """

    run_id: str
    forecast: Forecast
    rows: tuple[PhaseCheck, ...]
    steps_timed: int
    learnt: tuple[str, ...]

    @property
    def is_within(self) -> bool:
        """Whether the measured step lies in the predicted interval."""
        measured = self.rows[-1].measured_seconds
        return measured is not None and self.forecast.low_seconds <= measured <= self.forecast.high_seconds

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {
            "run_id": self.run_id,
            "steps_timed": self.steps_timed,
            "within_interval": self.is_within,
            "low_seconds": self.forecast.low_seconds,
            "high_seconds": self.forecast.high_seconds,
            "phases": [
                {
                    "name": row.name,
                    "predicted_seconds": row.predicted_seconds,
                    "measured_seconds": row.measured_seconds,
                }
                for row in self.rows
            ],
            "learnt": list(self.learnt),
        }


def check_run(run: RunDirectory, home: Path) -> RunCheck:
    """Hold a run's plan against its journal.

    Raises:
        InputError: the plan has no forecast, or the run has not timed a step yet.
    """
    plan = run.plan()
    if plan.forecast is None:
        raise InputError(
            f"{run.path}: its plan has no forecast", hint="measure this machine first: lepton cluster probe"
        )
    tally = Tally()
    for event in run.events():
        tally.add(event)
    rows = compare(plan, tally)
    if not rows:
        raise InputError(f"{run.path}: no step was timed yet", hint="the first report includes warming up")
    with open_rates(home) as store:
        learnt = correction_of(store, str(run.job().get("framework", ""))).words()
    return RunCheck(
        run_id=run.path.name, forecast=plan.forecast, rows=rows, steps_timed=tally.steps_timed, learnt=learnt
    )
