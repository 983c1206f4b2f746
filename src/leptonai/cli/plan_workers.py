"""What ``lepton plan --goal`` says of this machine: how many workers, of how many threads."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console

from leptonai.cli.output import say, table
from leptonai.core.units import format_bytes, format_seconds
from leptonai.launch.planning import WorkerChoice

MOST_ROWS = 12


def print_workers(choices: Sequence[WorkerChoice], console: Console) -> None:
    """The best first, with what to write into the cluster file."""
    numbers = ["workers", "threads", "step", "low", "high", "memory"]
    priced = choices[0].step_price is not None
    numbers += ["USD"] if priced else []
    rows = table(*numbers, right=tuple(numbers))
    for choice in choices[:MOST_ROWS]:
        made = choice.forecast
        rows.add_row(
            str(choice.num_workers), str(choice.threads), format_seconds(made.step_seconds),
            format_seconds(made.low_seconds), format_seconds(made.high_seconds),
            format_bytes(made.memory_bytes * choice.num_workers),
            *([f"{choice.step_price:.3g}"] if priced else []),
        )  # fmt: skip
    say(console, ("workers of this machine, best first", "bold"))
    console.print(rows)
    if len(choices) > MOST_ROWS:
        say(console, (f"and {len(choices) - MOST_ROWS} more", "dim"))
    best = choices[0]
    say(console, f"in the cluster file: workers: {{count: {best.num_workers}, threads: {best.threads}}}")
