"""``lepton hardware``: what devices and machines for rent there are, and which to take for a job."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from leptonai.cli.count_bar import count_bar
from leptonai.cli.hardware_view import (
    accelerator_to_json,
    accelerators_table,
    figures_table,
    instance_to_json,
    instances_table,
    sources_lines,
)
from leptonai.cli.options import DEFAULT_HOME, HomeOption, JsonOption, home_directory
from leptonai.cli.output import err, out, print_json, say, shown_path
from leptonai.core.errors import InputError

if TYPE_CHECKING:
    from leptonai.compute.hardware.catalogue import Catalogue
    from leptonai.compute.hardware.entries import Instance

LIST_EXAMPLES = """
[bold]Examples[/bold]

  lepton hardware list

  lepton hardware list --kind instance

  lepton hardware list --catalogue ours.yaml --json
"""
SHOW_EXAMPLES = """
[bold]Examples[/bold]

  lepton hardware show h100

  lepton hardware show p5.48xlarge
"""
CHOOSE_EXAMPLES = """
[bold]Examples[/bold]

  lepton hardware choose --model gpt-22b --tokens 300B --batch 1024 --deadline 30d

  lepton hardware choose --model gpt-22b --tokens 300B --batch 1024 --goal time --plot choice.png

  lepton hardware choose --model 24,2048,16,2048,51200 --steps 100000 --batch 512 --cloud AWS --spot

[dim]Times count failures and checkpoints; waiting for machines and interruptions of spot machines come on top.[/dim]
"""
_COUNT_SUFFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_SPAN_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0, "w": 604800.0}

CatalogueOption = Annotated[
    list[Path] | None,
    typer.Option(
        "--catalogue",
        metavar="FILE",
        help="Entries of your own (YAML or JSON), over those known; may be given again. "
        "Files in the folder hardware of the home count always.",
        show_default=False,
    ),
]


def hardware_app() -> typer.Typer:
    """The commands."""
    app = typer.Typer(
        help="Accelerators and machines for rent: figures with sources, and which to take.",
        no_args_is_help=True,
        rich_markup_mode="rich",
    )
    app.command("list", epilog=LIST_EXAMPLES)(list_hardware)
    app.command("show", epilog=SHOW_EXAMPLES)(show_hardware)
    app.command("choose", epilog=CHOOSE_EXAMPLES)(choose_hardware)
    return app


def list_hardware(
    kind: Annotated[
        Literal["accelerator", "instance"] | None,
        typer.Option("--kind", help="Only these.", show_default=False),
    ] = None,
    catalogue: CatalogueOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """List accelerators (dense peak FLOP/s) and machines for rent (prices by the hour)."""
    found = _catalogue(catalogue, home)
    accelerators = [] if kind == "instance" else list(found.accelerators.values())
    instances = [] if kind == "accelerator" else list(found.instances.values())
    if as_json:
        lists: dict[str, Any] = {}
        if kind != "instance":
            lists["accelerators"] = [accelerator_to_json(each) for each in accelerators]
        if kind != "accelerator":
            lists["instances"] = [instance_to_json(each) for each in instances]
        print_json(lists)
        return
    if accelerators:
        out().print(accelerators_table(accelerators))
    if accelerators and instances:
        say(out(), "")
    if instances:
        out().print(instances_table(instances))
    say(out(), "")
    say(out(), "sources and dates of every figure: lepton hardware show NAME")


def show_hardware(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Of an accelerator or instance.", show_default=False)
    ],
    catalogue: CatalogueOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Show every figure of an accelerator or instance with its source and date."""
    from leptonai.compute.hardware.entries import Instance

    entry = _catalogue(catalogue, home).find(name)
    if as_json:
        print_json(instance_to_json(entry) if isinstance(entry, Instance) else accelerator_to_json(entry))
        return
    if isinstance(entry, Instance):
        place = f"{entry.cloud}, {entry.region}" if entry.region else entry.cloud
        say(out(), (entry.name, "bold"), f"  {place}  {entry.count} x {entry.accelerator.title}")
    else:
        names = f"  also: {', '.join(entry.aliases)}" if entry.aliases else ""
        say(out(), (entry.name, "bold"), f"  {entry.title}{names}")
        if entry.interconnect is not None:
            say(out(), f"interconnect: {entry.interconnect.kind}, rates one way for each device")
    figures = list(entry.figures())
    currency = entry.currency if isinstance(entry, Instance) else "USD"
    out().print(figures_table(figures, currency=currency))
    say(out(), "")
    for line in sources_lines(figures):
        out().print(line)
    if isinstance(entry, Instance):
        say(out(), f"its accelerator: lepton hardware show {entry.accelerator.name}")


def choose_hardware(
    model: Annotated[
        str,
        typer.Option(
            "--model",
            metavar="MODEL",
            help="A known name such as [bold]gpt-22b[/bold], or layers,hidden,heads,sequence,vocabulary,feed_forward.",
            show_default=False,
        ),
    ],
    batch: Annotated[
        int, typer.Option("--batch", min=1, help="Sequences of one optimiser step.", show_default=False)
    ],
    tokens: Annotated[
        str | None,
        typer.Option(
            "--tokens", metavar="N", help="To train on, such as [bold]300B[/bold].", show_default=False
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", help="Optimiser steps, instead of tokens.", show_default=False)
    ] = None,
    deadline: Annotated[
        str | None,
        typer.Option(
            "--deadline", metavar="TIME", help="It must be done in, such as 30d or 12h.", show_default=False
        ),
    ] = None,
    goal: Annotated[Literal["price", "time"], typer.Option("--goal", help="What to make small.")] = "price",
    spot: Annotated[bool, typer.Option("--spot", help="At spot prices.")] = False,
    max_nodes: Annotated[int, typer.Option("--max-nodes", min=1, help="Most nodes together.")] = 64,
    cloud: Annotated[
        list[str] | None,
        typer.Option(
            "--cloud", metavar="NAME", help="Only of this cloud; may be given again.", show_default=False
        ),
    ] = None,
    instance: Annotated[
        list[str] | None,
        typer.Option("--instance", metavar="NAME", help="Only this; may be given again.", show_default=False),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(
            "--plot", metavar="FILE", help="Draw price against time, PNG or SVG.", show_default=False
        ),
    ] = None,
    catalogue: CatalogueOption = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Choose the cheapest or fastest machines to train a transformer."""
    from leptonai.cli.hardware_choice import choice_to_json, print_choice
    from leptonai.compute.hardware.choose import choose
    from leptonai.compute.models import find_model

    wanted = find_model(model)
    deadline_seconds = None if deadline is None else _span(deadline)
    instances = _instances(_catalogue(catalogue, home), cloud, instance)
    if plot is not None and plot.suffix.lower() not in (".png", ".svg"):
        raise InputError(
            f"--plot: {plot.name!r} is neither PNG nor SVG", hint="write a name such as choice.png"
        )
    with count_bar(err(), "machine sets") as count:
        found = choose(
            wanted,
            instances=instances,
            global_batch=batch,
            tokens=None if tokens is None else _count(tokens),
            steps=steps,
            deadline_seconds=deadline_seconds,
            goal=goal,
            spot=spot,
            max_nodes=max_nodes,
            on_progress=lambda done, total: count("machine sets", done, total),
        )
    if plot is not None:
        from leptonai.cli.hardware_plot import draw_choice

        draw_choice(found, plot, deadline_seconds=deadline_seconds)
    if as_json:
        print_json(choice_to_json(found, spot=spot))
        return
    print_choice(found, out(), spot=spot)
    if plot is not None:
        say(out(), f"plot: {shown_path(plot)}")


def _catalogue(files: list[Path] | None, home: Path) -> Catalogue:
    from leptonai.compute.hardware.catalogue import catalogue_files, load_catalogue

    return load_catalogue((*catalogue_files(home_directory(home)), *(files or ())))


def _instances(catalogue: Catalogue, clouds: list[str] | None, names: list[str] | None) -> list[Instance]:
    found = list(catalogue.instances.values())
    if names:
        found = [catalogue.instance(name) for name in names]
    if clouds:
        wanted = {cloud.lower() for cloud in clouds}
        known = sorted({each.cloud for each in catalogue.instances.values()})
        if unknown := wanted - {cloud.lower() for cloud in known}:
            raise InputError(
                f"--cloud: {sorted(unknown)[0]!r} is not known", hint=f"one of: {', '.join(known)}"
            )
        found = [each for each in found if each.cloud.lower() in wanted]
    return found


def _count(text: str) -> float:
    """The number that ``--tokens`` means.

    >>> _count("300B"), _count("1.5e9")
    (300000000000.0, 1500000000.0)
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?(?:[eE]\+?[0-9]{1,2})?)\s*([kKmMbBtT]?)\s*", text)
    if match is None:
        raise InputError(f"--tokens: {text!r} is no number of tokens", hint="write one such as 300B or 1.5e9")
    return float(match[1]) * _COUNT_SUFFIXES[match[2].lower()]


def _span(text: str) -> float:
    """The seconds that ``--deadline`` means.

    >>> _span("30d"), _span("12 h")
    (2592000.0, 43200.0)
    """
    match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-z]+)\s*", text)
    if match is None or match[2] not in _SPAN_SECONDS:
        units = ", ".join(_SPAN_SECONDS)
        raise InputError(
            f"--deadline: {text!r} is no length of time", hint=f"write 30d or 12h; units: {units}"
        )
    seconds = float(match[1]) * _SPAN_SECONDS[match[2]]
    if not (seconds > 0 and math.isfinite(seconds)):
        raise InputError(f"--deadline: expected more than 0, found {text!r}")
    return seconds
