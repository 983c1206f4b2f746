"""``lepton faults``: what a message of a machine means, and what would help."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leptonai.cli.options import JsonOption
from leptonai.cli.output import facts, out, print_json, say, table
from leptonai.cli.severity import DO, STYLES
from leptonai.core.errors import InputError

if TYPE_CHECKING:
    from leptonai.operations.faults.catalogue import Catalogue, KnownFault, Match

app = typer.Typer(
    help="Explain faults of machines, and find them in logs.", no_args_is_help=True, rich_markup_mode="rich"
)

EXPLAIN_EXAMPLES = """
[bold]Examples[/bold]

  lepton faults explain 79

  lepton faults explain oom_kill

  lepton faults explain sxid
"""
LIST_EXAMPLES = """
[bold]Example[/bold]

  lepton faults list --site faults.yaml
"""
FIND_EXAMPLES = """
[bold]Examples[/bold]

  dmesg | lepton faults find -

  lepton faults find /var/log/kern.log --json
"""
SiteOption = Annotated[
    Path | None,
    typer.Option(
        "--site", metavar="FILE", help="Your own ratings and faults, over the shipped ones.", show_default=False,
        envvar="LEPTON_FAULTS",
    ),
]  # fmt: skip


@app.command(epilog=EXPLAIN_EXAMPLES)
def explain(
    word: Annotated[
        str, typer.Argument(metavar="FAULT", help="A code, an id or a family.", show_default=False)
    ],
    site: SiteOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what a fault means, how bad it is, and what would help."""
    from leptonai.core.values import value_to_json

    catalogue = _catalogue(site)
    found = catalogue.explain(word)
    if as_json:
        print_json({"version": catalogue.version, "faults": [value_to_json(each) for each in found]})
        return
    for number, each in enumerate(found):
        if number:
            say(out(), "")
        out().print(facts(_rows(each, catalogue.version)))


@app.command("list", epilog=LIST_EXAMPLES)
def list_faults(site: SiteOption = None, as_json: JsonOption = False) -> None:
    """List all faults of the catalogue."""
    from leptonai.core.values import value_to_json

    catalogue = _catalogue(site)
    if as_json:
        known = [value_to_json(each) for each in catalogue.faults.values()]
        print_json({"version": catalogue.version, "faults": known})
        return
    rows = table("fault", "severity", "what")
    for each in catalogue.faults.values():
        severity = "ignored" if each.ignored else each.severity
        rows.add_row(each.id, severity, each.title, style="dim" if each.ignored else STYLES[each.severity])
    out().print(rows)
    say(out(), f"\n{len(catalogue.faults)} faults, catalogue {catalogue.version}")


@app.command(epilog=FIND_EXAMPLES)
def find(
    log: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="A log, or - for standard input.", show_default=False),
    ],
    site: SiteOption = None,
    as_json: JsonOption = False,
) -> None:
    """Find known faults in a log, each thing that it befell once with how often."""
    from leptonai.core.values import value_to_json

    catalogue = _catalogue(site)
    counts: Counter[tuple[str, str]] = Counter()
    first: dict[tuple[str, str], Match] = {}
    for line in _lines(log):
        match = catalogue.match(line)
        if match is not None:
            key = (match.fault.id, match.device)
            counts[key] += 1
            first.setdefault(key, match)
    if as_json:
        print_json([{**value_to_json(first[key]), "count": counts[key]} for key in first])
        return
    if not first:
        say(out(), "no known fault")
        return
    rows = table("fault", "times", "severity", "where", "what", "would help", right=("times",))
    for key, match in first.items():
        fault = match.fault
        rows.add_row(
            fault.id, str(counts[key]), fault.severity, match.device or "-", fault.title, DO[fault.action],
            style=STYLES[fault.severity],
        )  # fmt: skip
    out().print(rows)


def _catalogue(site: Path | None) -> Catalogue:
    from leptonai.operations.faults.catalogue import read_site, shipped

    return shipped() if site is None else read_site(site, shipped())


def _rows(fault: KnownFault, version: str) -> dict[str, str]:
    rows = {
        "fault": fault.id, "what": fault.title, "meaning": fault.meaning,
        "severity": "ignored here" if fault.ignored else fault.severity, "would help": DO[fault.action],
    }  # fmt: skip
    if fault.why:
        rows["changed here"] = fault.why
    if fault.pattern:
        rows["found by"] = fault.pattern
    checked = "" if fault.checked else ", not compared with its source"
    rows["source"] = f"{fault.source} ({', '.join(each for each in (fault.date, version) if each)}{checked})"
    return rows


def _lines(log: Path) -> Iterator[str]:
    if str(log) == "-":
        yield from sys.stdin
        return
    try:
        with log.open(encoding="utf-8", errors="replace") as file:
            yield from file
    except OSError as error:
        raise InputError(f"{log}: cannot be read: {error.strerror}") from error
