"""How commands speak: results to standard output, everything else to standard error, errors in one form."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from leptonai.core.errors import Fault, LeptonError

INTERNAL_ERROR_CODE = 70
INTERRUPTED_CODE = 130


def out() -> Console:
    """The console of results. Made anew at each call, so that it follows a redirected ``sys.stdout``.

    Markup is off: what files and people wrote is shown as it is, brackets and all.
    """
    return Console(highlight=False, markup=False, emoji=False)


def err() -> Console:
    """The console of progress, warnings and errors."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


def say(console: Console, *parts: str | tuple[str, str]) -> None:
    """One line, never wrapped, so that a path in it can be copied whole; parts may be (text, style)."""
    console.print(Text.assemble(*parts), soft_wrap=True)


def print_json(value: Any) -> None:
    """One JSON value on standard output, indented for people, never coloured or wrapped.

    JSON has no word for a number that is not finite; it becomes null.
    """
    sys.stdout.write(json.dumps(_finite(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def print_error(error: LeptonError, *, as_json: bool) -> int:
    """Show an expected error and return its exit code; a worker's traceback comes first."""
    detail = error.detail if isinstance(error, Fault) else None
    if as_json:
        print_json({"error": error_to_json(error)})
    console = err()
    if detail:
        say(console, (detail.rstrip("\n"), "dim"))
    say(console, ("error: ", "bold red"), error.message)
    if error.hint:
        say(console, ("  hint: ", "bold"), error.hint)
    return error.exit_code


def error_to_json(error: LeptonError) -> dict[str, Any]:
    """The error as JSON-ready values.

    >>> error_to_json(LeptonError("it broke", hint="mend it"))
    {'kind': 'LeptonError', 'exit_code': 70, 'message': 'it broke', 'hint': 'mend it', 'detail': None}
    """
    return {
        "kind": type(error).__name__,
        "exit_code": error.exit_code,
        "message": error.message,
        "hint": error.hint,
        "detail": error.detail if isinstance(error, Fault) else None,
    }


def table(*headings: str, right: tuple[str, ...] = ()) -> Table:
    """An empty table in the style of all commands; columns named in ``right`` hold numbers."""
    made = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        made.add_column(heading, justify="right" if heading in right else "left", overflow="fold")
    return made


def facts(rows: Mapping[str, str]) -> Table:
    """Names and values in two columns, without a heading."""
    made = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    made.add_column(style="bold", no_wrap=True)
    made.add_column(overflow="fold")
    for name, value in rows.items():
        made.add_row(name, value)
    return made


def shown_path(path: Path) -> str:
    """A path as a person would type it: relative where it lies below the current directory."""
    try:
        return str(path.resolve().relative_to(Path.cwd())) or "."
    except ValueError:
        home = os.path.expanduser("~")
        text = str(path)
        return "~" + text[len(home) :] if home != "/" and text.startswith(home + "/") else text
