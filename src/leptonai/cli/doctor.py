"""``lepton doctor``: what this machine has, and what is wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer
from rich.console import Console
from rich.text import Text

from leptonai.cli.options import DEFAULT_HOME, HomeOption, JsonOption, home_directory
from leptonai.cli.output import out, print_json, say, table
from leptonai.core.errors import Fault

if TYPE_CHECKING:
    from leptonai.cli.findings import Finding

EXAMPLES = """
[bold]Examples[/bold]

  lepton doctor

  lepton doctor --json

[dim]Exit code 0 when nothing is bad (warnings are allowed), 4 otherwise.[/dim]
"""
_STYLES = {"ok": "green", "warn": "yellow", "bad": "bold red"}


def doctor(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """Show what this machine has (CPU, GPUs, memory, versions, open ports) and what is wrong with it."""
    from leptonai.cli.machine import examine

    found = list(examine(home_directory(home)))
    if as_json:
        print_json({"findings": [each.to_json() for each in found]})
    else:
        print_findings(found, out())
    if any(each.state == "bad" for each in found):
        raise typer.Exit(Fault.exit_code)


def print_findings(found: Sequence[Finding], console: Console) -> None:
    """One row each, then what to do about those that are not ok."""
    rows = table("", "what", "found")
    for each in found:
        rows.add_row(Text(each.state, style=_STYLES[each.state]), each.name, each.value)
    console.print(rows)
    for each in found:
        if each.advice:
            say(console, (f"\n{each.state}: ", _STYLES[each.state]), f"{each.name}: {each.advice}")
    if all(each.state == "ok" for each in found):
        say(console, "\nnothing is wrong")
