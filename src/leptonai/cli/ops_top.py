"""``lepton ops top``: nodes, runs and open incidents, live in the terminal."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leptonai.cli.options import DEFAULT_HOME, HomeOption, JsonOption
from leptonai.cli.output import out, print_json, table
from leptonai.cli.privacy import WorkspaceOption
from leptonai.core.errors import LeptonError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from leptonai.launch.registry import RegisteredRun
    from leptonai.operations.collector.live import Live
    from leptonai.operations.incidents.incident import Incident

EXAMPLES = """
[bold]Examples[/bold]

  lepton ops top

  lepton ops top --collector http://127.0.0.1:9095

  lepton ops top --once --json

[dim]Without --collector, LEPTON_COLLECTOR and LEPTON_COLLECTOR_READ_TOKEN_FILE are looked at; without any, runs and
incidents of the workspace are shown, and no nodes.[/dim]
"""
_SIZES = ((1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """What is shown at one moment.

    Args:
        at_seconds: wall time.
        live: what a collector knows; None: none was asked.
        problem: why it did not answer; empty: it did.
        runs: that go on.
        incidents: open ones.
    """

    at_seconds: float
    live: Live | None
    problem: str
    runs: Sequence[RegisteredRun]
    incidents: Sequence[Incident]


def top(
    collector: Annotated[
        str | None,
        typer.Option("--collector", metavar="URL", help="Whose nodes to show.", envvar="LEPTON_COLLECTOR",
                     show_default=False),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option("--token-file", metavar="FILE", help="Holds the collector's read token.",
                     envvar="LEPTON_COLLECTOR_READ_TOKEN_FILE", show_default=False),
    ] = None,
    interval: Annotated[float, typer.Option("--interval", min=0.5, metavar="SECONDS", help="Between two looks.")] = 2.0,
    once: Annotated[bool, typer.Option("--once", help="Show it once, and end.")] = False,
    home: HomeOption = DEFAULT_HOME,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:  # fmt: skip
    """Watch nodes, runs and incidents live, until Ctrl-C."""
    from leptonai.cli.ops import open_workspace

    with open_workspace(home, workspace) as opened:
        look = _looker(opened, collector, token_file)
        if as_json:
            print_json(to_json(look()))
        elif once or not out().is_terminal:
            out().print(render(look()))
        else:
            _go_on(look, interval)


def _go_on(look: Callable[[], Snapshot], interval: float) -> None:
    from rich.live import Live as Screen

    with Screen(render(look()), console=out(), screen=True, auto_refresh=False) as screen:
        while True:
            time.sleep(interval)
            screen.update(render(look()), refresh=True)


def _looker(workspace: Any, collector: str | None, token_file: Path | None) -> Callable[[], Snapshot]:
    from leptonai.core.clock import SystemClock
    from leptonai.launch.registry import RunRegistry
    from leptonai.operations.agent.collector import read_token
    from leptonai.operations.collector.live import Reader
    from leptonai.operations.incidents.incident_store import IncidentStore

    clock = SystemClock()
    incidents, runs = IncidentStore(workspace, clock=clock), RunRegistry(workspace, clock=clock)
    token = read_token(token_file) if token_file is not None else ""
    reader = Reader(collector, token) if collector else None

    def look() -> Snapshot:
        live, problem = None, ""
        if reader is not None:
            try:
                live = reader.live()
            except LeptonError as error:
                problem = error.message if error.hint is None else f"{error.message}; {error.hint}"
        going = [each for each in runs.list() if each.status == "running"]
        return Snapshot(
            at_seconds=time.time(),
            live=live,
            problem=problem,
            runs=going,
            incidents=incidents.list(only_open=True),
        )

    return look


def to_json(found: Snapshot) -> dict[str, Any]:
    """The same as JSON-ready values."""
    from leptonai.core.values import value_to_json

    live = found.live
    return {
        "at_seconds": found.at_seconds,
        "nodes": {} if live is None else {name: dict(values) for name, values in live.nodes.items()},
        "runs": {
            each.run_id: {
                "workers": each.num_workers,
                **(dict(live.runs.get(each.run_id, {})) if live else {}),
            }
            for each in found.runs
        },
        "incidents": [value_to_json(each) for each in found.incidents],
        "problem": found.problem,
    }


def render(found: Snapshot) -> RenderableType:
    """Tables one below the other, within 80 columns."""
    from rich.console import Group
    from rich.text import Text

    from leptonai.cli.ops_view import incident_table

    when = time.strftime("%H:%M:%S", time.localtime(found.at_seconds))
    counts = f"{len(found.runs)} runs, {len(found.incidents)} open incidents"
    nodes = {} if found.live is None else found.live.nodes
    if found.live is not None:
        counts = f"{len(nodes)} nodes, {counts}"
    parts: list[RenderableType] = [Text.assemble((when, "bold"), f"  {counts}")]
    if found.problem:
        parts.append(Text.assemble(("warning: ", "bold yellow"), found.problem))
    if nodes:
        parts += ["", node_table(nodes)]
    if found.runs:
        parts += [
            "",
            run_table(found.runs, {} if found.live is None else found.live.runs, now=found.at_seconds),
        ]
    if found.incidents:
        parts += ["", incident_table(found.incidents, now_seconds=found.at_seconds)]
    return Group(*parts)


def node_table(nodes: Mapping[str, Mapping[str, float]]) -> RenderableType:
    """One line a node, the busiest first."""
    names = ("cpu", "memory", "gpu", "heat", "read/s", "write/s", "in/s", "out/s")
    rows = table("node", *names, right=names)
    for name in sorted(nodes, key=lambda name: (-nodes[name].get("cpu", 0.0), name)):
        values = nodes[name]
        gone = values.get("up", 1.0) == 0.0
        rows.add_row(
            name if not gone else f"{name} (stopped)",
            *(_share(values.get(each)) for each in ("cpu", "memory", "gpu")),
            _number(values.get("gpu_heat"), "°"),
            *(_size(values.get(each)) for each in ("read", "written", "received", "sent")),
            style="dim" if gone else None,
        )
    return rows


def run_table(
    runs: Sequence[RegisteredRun], live: Mapping[str, Mapping[str, float]], *, now: float
) -> RenderableType:
    """One line a run that goes on."""
    from leptonai.core.units import format_seconds

    rows = table("run", "since", "workers", "step", "ex/s", "loss", right=("workers", "step", "ex/s", "loss"))
    for each in runs:
        values = live.get(each.run_id, {})
        rows.add_row(
            each.run_id, format_seconds(max(0.0, now - each.started_seconds)),
            _number(values.get("workers", float(each.num_workers))), _number(values.get("step")),
            _number(values.get("rate")), "-" if "loss" not in values else f"{values['loss']:.4g}",
        )  # fmt: skip
    return rows


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


def _number(value: float | None, sign: str = "") -> str:
    return "-" if value is None else f"{value:,.0f}{sign}"


def _size(value: float | None) -> str:
    if value is None:
        return "-"
    for size, sign in _SIZES:
        if value >= size:
            return f"{value / size:.1f}{sign}"
    return f"{value:.0f}"
