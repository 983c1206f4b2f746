"""What ``lepton plan --check`` says: predicted against measured, phase by phase."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from leptonai.cli.output import say, table
from leptonai.compute.forecast import PhaseCheck
from leptonai.core.units import format_seconds
from leptonai.launch.checking import RunCheck


def print_check(found: RunCheck, console: Console) -> None:
    """The check as a table for people."""
    console.print(check_table(found.rows))
    interval = (
        f"{format_seconds(found.forecast.low_seconds)} to {format_seconds(found.forecast.high_seconds)}"
    )
    held = "lies in" if found.is_within else "lies outside"
    say(console, f"\nover {found.steps_timed:,} steps; the measured step {held} the interval of {interval}")
    for sentence in found.learnt:
        say(console, ("learnt: ", "bold"), sentence)


def check_table(rows: Sequence[PhaseCheck]) -> Table:
    """One row a phase, the whole step last."""
    numbers = ("predicted", "measured", "ratio")
    made = table("one step", *numbers, right=numbers)
    for row in rows:
        made.add_row(
            row.name,
            _time(row.predicted_seconds),
            _time(row.measured_seconds),
            "" if row.ratio is None else f"{row.ratio:.2f}",
            style="bold" if row.name == "step" else None,
        )
    return made


def _time(seconds: float | None) -> str:
    return "" if seconds is None else format_seconds(seconds)
