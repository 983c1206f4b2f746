"""Arguments and options that several commands share."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leptonai.core.errors import InputError

if TYPE_CHECKING:
    from leptonai.compute.cluster import Cluster

DEFAULT_HOME = Path("~/.local/share/lepton")

JobArgument = Annotated[
    Path,
    typer.Argument(metavar="JOB", help="A Python file with a TrainJob named job.", show_default=False),
]
ClusterOption = Annotated[
    Path,
    typer.Option("--cluster", "-c", metavar="FILE", help="The cluster file (YAML).", show_default=False),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Replace a setting of the job, such as [bold]epochs=2[/bold]; may be given again.",
        show_default=False,
    ),
]
HomeOption = Annotated[
    Path,
    typer.Option(
        "--home",
        metavar="DIR",
        envvar="LEPTON_HOME",
        help="Where the register of runs and downloaded data live.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON value instead of text.")]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """What is found wrong with a file's content after it was read is told with its name."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error.message}", hint=error.hint) from error


def home_directory(home: Path) -> Path:
    """The home as an absolute path."""
    return home.expanduser().absolute()


def read_cluster_file(path: Path) -> tuple[Cluster, str]:
    """The cluster and the file's text; where the file names no cores, those this process may use count."""
    from leptonai.compute.cluster_file import read_cluster

    cluster = read_cluster(path, available_cores=len(os.sched_getaffinity(0)))
    return cluster, path.read_text(encoding="utf-8")
