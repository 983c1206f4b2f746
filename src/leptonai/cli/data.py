"""``lepton data``: get public data sets, checked against known digests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from leptonai.cli.options import DEFAULT_HOME, HomeOption, JsonOption, home_directory
from leptonai.cli.output import err, out, print_json, say, shown_path, table

if TYPE_CHECKING:
    from leptonai.training.data.datasets import Places

app = typer.Typer(help="List and get data sets.", no_args_is_help=True, rich_markup_mode="rich")

GET_EXAMPLES = """
[bold]Examples[/bold]

  lepton data get mnist

  LEPTON_DATA=/srv/data lepton data get cifar10

[dim]Looks in the folders of LEPTON_DATA, then in the home, then at the official addresses.[/dim]
"""


@app.command("list")
def list_sets(home: HomeOption = DEFAULT_HOME, as_json: JsonOption = False) -> None:
    """List the data sets that can be had, and where each lies now."""
    from leptonai.training.data.datasets import list_datasets

    found = list_datasets(places_of(home))
    if as_json:
        print_json(
            [
                {
                    "name": each.name,
                    "summary": each.summary,
                    "licence": each.licence,
                    "place": str(each.place) if each.place else None,
                }
                for each in found
            ]
        )
        return
    rows = table("name", "what", "licence", "here")
    for each in found:
        rows.add_row(each.name, each.summary, each.licence, shown_path(each.place) if each.place else "no")
    out().print(rows)


@app.command(epilog=GET_EXAMPLES)
def get(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="One of the names of lepton data list.", show_default=False),
    ],
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Get one data set, unless it is here already, and print the folder it lies in."""
    from leptonai.training.data.datasets import fetch

    places = places_of(home)
    progress = DownloadProgress(err(), quiet=as_json)
    try:
        folder = fetch(name, data_dirs=places.data_dirs, cache=places.cache, progress=progress)
    finally:
        progress.close()
    if as_json:
        print_json({"name": name, "path": str(folder)})
    else:
        say(out(), str(folder))


def places_of(home: Path) -> Places:
    """Where data sets are looked for, by the environment and the home that was named."""
    from leptonai.training.data.datasets import default_places

    return default_places({**os.environ, "LEPTON_HOME": str(home_directory(home))})


class DownloadProgress:
    """Shows bytes as they arrive: a line rewritten in place on a terminal, else one line for each tenth."""

    def __init__(self, console: Console, *, quiet: bool) -> None:
        self._console, self._quiet = console, quiet
        self._name = ""
        self._tenth = -1

    def __call__(self, name: str, done_bytes: int, total_bytes: int | None) -> None:
        if self._quiet:
            return
        if name != self._name:
            self.close()
            self._name, self._tenth = name, -1
        tenth = 10 * done_bytes // total_bytes if total_bytes else 0
        if self._console.is_terminal:
            self._console.print(describe(name, done_bytes, total_bytes), end="\r", soft_wrap=True)
        elif tenth > self._tenth:
            say(self._console, describe(name, done_bytes, total_bytes))
        self._tenth = max(self._tenth, tenth)

    def close(self) -> None:
        """Go to a new line after one that was rewritten in place."""
        if self._name and not self._quiet and self._console.is_terminal:
            self._console.print()


def describe(name: str, done_bytes: int, total_bytes: int | None) -> str:
    """How far one file is.

    >>> describe("train.gz", 5_000_000, 10_000_000)
    'getting train.gz  4.77 MiB of 9.54 MiB  50%'
    """
    from leptonai.core.units import format_bytes

    if not total_bytes:
        return f"getting {name}" + (f"  {format_bytes(done_bytes)}" if done_bytes else "")
    share = 100 * done_bytes // total_bytes
    return f"getting {name}  {format_bytes(done_bytes)} of {format_bytes(total_bytes)}  {share}%"
