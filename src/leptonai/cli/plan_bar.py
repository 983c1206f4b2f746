"""Where the time of a step goes, as bars that a terminal can show."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from leptonai.cli.output import table
from leptonai.core.units import format_seconds

BAR_COLUMNS = 32
_EIGHTHS = " ▏▎▍▌▋▊▉"


def bar(share: float, columns: int = BAR_COLUMNS) -> str:
    """A bar of so many columns, in steps of an eighth; anything above nothing shows.

    >>> bar(0.5, 4), bar(0.0, 4), bar(0.001, 4)
    ('██', '', '▏')
    """
    eighths = round(min(max(share, 0.0), 1.0) * columns * 8)
    if share > 0:
        eighths = max(eighths, 1)
    whole, rest = divmod(eighths, 8)
    return "█" * whole + _EIGHTHS[rest].strip()


def phase_bars(phases: Sequence[tuple[str, float]]) -> Table:
    """One row for each phase that takes time, in the order given, with its share of their sum."""
    total = sum(seconds for _, seconds in phases) or 1.0
    rows = table("phase", "time", "share", "", right=("time", "share"))
    for name, seconds in phases:
        if seconds > 0:
            share = seconds / total
            rows.add_row(name, format_seconds(seconds), f"{share:.1%}", bar(share))
    return rows
