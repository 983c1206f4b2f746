"""``lepton resize``: more or fewer workers for a run that goes on."""

from __future__ import annotations

from typing import Annotated

import typer

from leptonai.cli.find_run import RunArgument, find_run
from leptonai.cli.options import DEFAULT_HOME, HomeOption, home_directory
from leptonai.cli.output import out, say, shown_path

EXAMPLES = """
[bold]Example[/bold]

  lepton resize last 2
"""


def resize(
    run: RunArgument,
    workers: Annotated[
        int, typer.Argument(metavar="WORKERS", help="How many workers to go on with.", show_default=False)
    ],
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Go on with another number of workers, from the next step all agree on."""
    from leptonai.core.control import Resize, send_order

    order = Resize(num_workers=workers)
    found = find_run(run, home_directory(home))
    send_order(found.path, order)
    say(out(), f"asked {shown_path(found.path)} to go on with {workers} workers")
