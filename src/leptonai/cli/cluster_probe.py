"""``lepton cluster probe``: measure what this machine really does, for plans."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from leptonai.cli.options import DEFAULT_HOME, HomeOption, JsonOption, home_directory, read_cluster_file
from leptonai.cli.output import err, out, print_json, say, shown_path
from leptonai.core.errors import InputError

if TYPE_CHECKING:
    from leptonai.compute.cluster import Cluster
    from leptonai.launch.probing import Progress

EXAMPLES = """
[bold]Examples[/bold]

  lepton cluster probe

  lepton cluster probe cluster.yaml --out cluster.measured.yaml --plot rates.png

  lepton cluster probe --quick --framework tensorflow --json

[dim]Takes under a minute; run it while nothing else computes. The file it writes serves wherever a
cluster file does.[/dim]
"""
DEFAULT_OUT = Path("cluster.measured.yaml")
TENTHS = 10


def probe(
    cluster: Annotated[
        Path | None,
        typer.Argument(
            metavar="[CLUSTER]",
            help="A cluster file whose text is kept; left out: this machine alone.",
            show_default=False,
        ),
    ] = None,
    out_file: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Where to write; an older measurement is replaced.")
    ] = DEFAULT_OUT,
    framework: Annotated[
        Literal["pytorch", "tensorflow"], typer.Option("--framework", help="Whose kernels to time.")
    ] = "pytorch",
    quick: Annotated[bool, typer.Option("--quick", help="Fewer sizes, in about 15 seconds.")] = False,
    plot: Annotated[
        Path | None,
        typer.Option("--plot", metavar="FILE", help="Also draw the rates (PNG).", show_default=False),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Measure this machine: kernels, memory, messages, disk and start-up, for plans that fit it."""
    from leptonai.compute.measured_file import THIS_MACHINE, check_replaceable, write_measured
    from leptonai.core.values import value_to_json
    from leptonai.launch.probe_findings import with_links
    from leptonai.launch.probing import DEFAULT_SECONDS, QUICK_SECONDS, probe_machine
    from leptonai.launch.rates import open_rates

    declared, text = read_cluster_file(cluster) if cluster is not None else (None, THIS_MACHINE)
    check_replaceable(out_file)
    if plot is not None and plot.suffix.lower() != ".png":
        raise InputError(f"--plot: expected a file that ends in .png, found {plot}")
    require(framework)
    directory = home_directory(home)
    directory.mkdir(parents=True, exist_ok=True)
    with shown_progress(quiet=as_json) as progress:
        probed = probe_machine(
            framework=framework,
            seconds=QUICK_SECONDS if quick else DEFAULT_SECONDS,
            quick=quick,
            directory=directory,
            progress=progress,
        )
    measured = with_links(probed.measured, local_pairs(declared))
    write_measured(out_file, measured, cluster_text=text)
    with open_rates(directory) as store:
        store.keep_measured(measured)
    if plot is not None:
        from leptonai.cli.probe_view import draw_rates

        draw_rates(measured, plot)
    remote = [node.name for node in declared.nodes if not node.is_local] if declared else []
    if as_json:
        print_json(
            {
                "path": str(out_file),
                "plot": None if plot is None else str(plot),
                "kept_in": str(directory),
                "seconds": probed.seconds,
                "spreads": [value_to_json(each) for each in probed.spreads],
                "skipped": [value_to_json(each) for each in probed.skipped],
                "not_measured": remote,
                "measured": value_to_json(measured),
            }
        )
        return
    from leptonai.cli.probe_view import print_probed

    print_probed(probed, out())
    say(out(), f"\nwritten to {shown_path(out_file)}, and kept for the plans of this machine")
    if plot is not None:
        say(out(), f"drawn in {shown_path(plot)}")
    if remote:
        say(out(), f"only this machine was measured; left as declared: {', '.join(remote)}")


def require(framework: str) -> None:
    """Check that a framework is installed, without importing it.

    Raises:
        InputError: it is not.
    """
    import importlib.util

    module = {"pytorch": "torch", "tensorflow": "tensorflow"}[framework]
    if importlib.util.find_spec(module) is None:
        raise InputError(
            f"{module} is not installed, so its kernels cannot be timed",
            hint=f"pip install openlepton[{framework}], or choose another --framework",
        )


def local_pairs(cluster: Cluster | None) -> list[tuple[str, str]]:
    """Pairs of linked nodes that are both this machine."""
    if cluster is None:
        return []
    local = {node.name for node in cluster.nodes if node.is_local}
    return [link.ends for link in cluster.links if set(link.ends) <= local]


@contextmanager
def shown_progress(*, quiet: bool) -> Iterator[Progress]:
    """A bar on a terminal, else a line for each tenth; nothing when quiet."""
    console = err()
    if quiet:
        yield lambda share, doing: None
    elif console.is_terminal:
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

        columns = (BarColumn(bar_width=24), TimeElapsedColumn(), TextColumn("{task.description}"))
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("starting", total=1.0)
            yield lambda share, doing: bar.update(task, completed=share, description=doing)
    else:
        told = -1

        def tell(share: float, doing: str) -> None:
            nonlocal told
            if int(share * TENTHS) > told:
                told = int(share * TENTHS)
                say(console, f"{share:4.0%} {doing}")

        yield tell
