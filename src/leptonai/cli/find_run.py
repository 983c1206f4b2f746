"""Which run a word on the command line means."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leptonai.core.errors import InputError

if TYPE_CHECKING:
    from leptonai.launch.rundir import RunDirectory

RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run directory, the beginning of a run's name, or [bold]last[/bold].",
        show_default=False,
    ),
]


def find_run(word: str, home: Path) -> RunDirectory:
    """The run that ``word`` means: a directory that exists, else a name in the register.

    Args:
        word: a path, the beginning of a name, or ``last``.
        home: where the register lies.

    Raises:
        InputError: there is no such run, or the word fits several.
    """
    from leptonai.launch.rundir import open_run

    path = Path(word)
    if path.is_dir() or "/" in word:
        return open_run(path)
    if (Path("runs") / word).is_dir():
        return open_run(Path("runs") / word)
    from leptonai.launch.registry import open_registry

    with open_registry(home) as registry:
        if word == "last":
            runs = registry.list()
            if not runs:
                raise InputError(
                    "there is no last run: none was ever started", hint="start one: lepton train"
                )
            return open_run(runs[0].path)
        return open_run(registry.find(word).path)
