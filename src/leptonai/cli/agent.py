"""``lepton agent``: what this node says of itself, once or on and on."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from leptonai.cli.options import JsonOption
from leptonai.cli.output import out, print_json, say, table
from leptonai.core.errors import InputError

if TYPE_CHECKING:
    from rich.table import Table

    from leptonai.operations.agent.reading import NodeReading

EXAMPLES = """
[bold]Examples[/bold]

  lepton agent --sources

  lepton agent --once

  lepton agent --listen 127.0.0.1:9100

  lepton agent --collector https://host:9095 --token-file token --spool spool

[dim]It runs until Ctrl-C or SIGTERM and then says goodbye, so that its silence is no alarm. Without --collector,
LEPTON_COLLECTOR and LEPTON_COLLECTOR_TOKEN_FILE are looked at.[/dim]
"""
_UNIT_SIGNS = {
    "seconds": "s", "bytes": "B", "celsius": "°C", "watts": "W", "volts": "V", "hertz": "Hz", "joules": "J",
    "ratio": "",
}  # fmt: skip
_STEPS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
_SCALED = ("bytes", "hertz", "joules", "")
"""Units in which large numbers are shortened: 16.8 GB, not 16800000000 B; times stay seconds."""


def agent(
    collector: Annotated[
        str | None,
        typer.Option(
            "--collector",
            metavar="URL",
            help="Send what is taken there.",
            show_default=False,
            envvar="LEPTON_COLLECTOR",
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(
            "--token-file",
            metavar="FILE",
            help="Holds the collector's write token.",
            show_default=False,
            envvar="LEPTON_COLLECTOR_TOKEN_FILE",
        ),
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(
            "--ca-file", metavar="FILE", help="Certificates to trust for https://.", show_default=False
        ),
    ] = None,
    insecure_http: Annotated[
        bool, typer.Option("--insecure-http", help="Let the token pass unencrypted beyond this machine.")
    ] = False,
    spool: Annotated[
        Path | None,
        typer.Option(
            "--spool",
            metavar="DIR",
            help="Keep what was not yet sent there, 64 MiB at most.",
            show_default=False,
        ),
    ] = None,
    listen: Annotated[
        str | None,
        typer.Option("--listen", metavar="HOST:PORT", help="Serve /metrics there.", show_default=False),
    ] = None,
    listen_token_file: Annotated[
        Path | None,
        typer.Option(
            "--listen-token-file",
            metavar="FILE",
            help="The token that readers of /metrics need.",
            show_default=False,
        ),
    ] = None,
    interval: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", help="Between two samples, 0.1 to 300.")
    ] = 1.0,
    node: Annotated[
        str | None,
        typer.Option(
            "--node", metavar="NAME", help="This node's name. Default: its host name.", show_default=False
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Read everything once, show it, and end.")] = False,
    sources: Annotated[
        bool, typer.Option("--sources", help="Show what can be read here, and why the rest cannot.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Watch this node: processor, memory, disks, network, heat, kernel messages, accelerators."""
    node = socket.gethostname() if node is None else node
    if once or sources:
        found = _read(node)
        if as_json:
            print_json(reading_to_json(found, with_values=once))
        elif once:
            out().print(values_table(found))
            say(out(), f"\n{len(found.values)} series of {len(found.present)} sources")
        else:
            out().print(sources_table(found))
        return
    if as_json:
        raise InputError("--json goes with --once or --sources", hint="lepton agent --once --json")
    words = {
        "--collector": collector, "--token-file": token_file, "--ca-file": ca_file, "--spool": spool,
        "--listen": listen, "--listen-token-file": listen_token_file, "--interval": interval, "--node": node,
    }  # fmt: skip
    argv = [word for name, value in words.items() if value is not None for word in (name, str(value))]
    become_agent([*argv, "--insecure-http"] if insecure_http else argv)


def become_agent(argv: list[str]) -> NoReturn:
    """Replace this process by the light one: this one's libraries alone take more memory than an agent may.

    Raises:
        InputError: the settings cannot be used; told here, in the command line's own form.
    """
    from leptonai.operations.agent.__main__ import parse

    parse(argv)
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "leptonai.operations.agent", *argv])


def _read(node: str) -> NodeReading:
    from leptonai.operations.agent.reading import read_node
    from leptonai.operations.agent.source import Place, SeriesTable

    return read_node(Place(table=SeriesTable({"node": node})))


def reading_to_json(found: NodeReading, *, with_values: bool) -> dict[str, object]:
    """A reading as JSON-ready values."""
    result: dict[str, object] = {
        "at_seconds": found.at_seconds,
        "sources": {
            **{name: {"present": True} for name in found.present},
            **{each.name: {"present": False, "reason": each.reason} for each in found.absent},
        },
    }
    if with_values:
        result["values"] = [
            {
                "source": each.source, "name": each.series.name, "unit": each.unit, "value": each.value,
                "labels": {name: value for name, value in each.series.labels if name != "__name__"},
            }
            for each in found.values
        ]  # fmt: skip
    return result


def values_table(found: NodeReading) -> Table:
    """Every series with its value."""
    rows = table("series", "value", right=("value",))
    for each in found.values:
        labels = [f"{name}={value}" for name, value in each.series.labels if name not in ("__name__", "node")]
        name = each.series.name
        rows.add_row(
            f"{name} {{{', '.join(labels)}}}" if labels else name, shown_value(each.value, each.unit)
        )
    return rows


def sources_table(found: NodeReading) -> Table:
    """Every source, and why it is absent where it is."""
    rows = table("source", "here", "series", "why not", right=("series",))
    for name in found.present:
        num_series = sum(each.source == name for each in found.values)
        rows.add_row(name, "yes", str(num_series) if num_series else "-", "")
    for absent in found.absent:
        rows.add_row(absent.name, "no", "-", absent.reason, style="dim")
    return rows


def shown_value(value: float, unit: str) -> str:
    """A value in few characters, with its unit.

    >>> shown_value(16_800_000_000.0, "bytes"), shown_value(0.25, "ratio"), shown_value(1_790_000_000.0, "seconds")
    ('16.8 GB', '0.25', '1790000000 s')
    """
    sign, prefix = _UNIT_SIGNS.get(unit, unit), ""
    if unit in _SCALED:
        for step, name in _STEPS:
            if abs(value) >= step:
                value, prefix = value / step, name
                break
    number = f"{value:.0f}" if abs(value) >= 1e6 or value.is_integer() else f"{value:.4g}"
    return f"{number} {prefix}{sign}".rstrip()
