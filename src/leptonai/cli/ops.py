"""``lepton ops``: what is wrong, what was, why, and who is told."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leptonai.cli import ops_top
from leptonai.cli.options import DEFAULT_HOME, HomeOption, JsonOption, home_directory
from leptonai.cli.output import out, print_json, say
from leptonai.cli.privacy import WorkspaceOption

if TYPE_CHECKING:
    from leptonai.core.workspace import Workspace
    from leptonai.operations.incidents.incident_store import IncidentStore

app = typer.Typer(
    help="See what goes on: open incidents, what they rest on, who is told.", no_args_is_help=True,
    rich_markup_mode="rich",
)  # fmt: skip

STATUS_EXAMPLES = """
[bold]Examples[/bold]

  lepton ops status

  lepton ops status --json
"""
INCIDENTS_EXAMPLES = """
[bold]Examples[/bold]

  lepton ops incidents --open

  lepton ops incidents --limit 50
"""
EXPLAIN_EXAMPLES = """
[bold]Example[/bold]

  lepton ops explain 12
"""
CLOSE_EXAMPLES = """
[bold]Example[/bold]

  lepton ops close 12 --epoch 1
"""
SILENCE_EXAMPLES = """
[bold]Examples[/bold]

  lepton ops silence --place node-7 --for 2h --reason "its fan is being replaced"

  lepton ops silence --cause straggler --for 30min --reason "known, see the wiki"
"""

NumberArgument = Annotated[
    int, typer.Argument(metavar="NUMBER", help="The incident's number.", show_default=False)
]


@contextmanager
def open_workspace(home: Path, url: str | None) -> Iterator[Workspace]:
    """The workspace of a home, or the one of a URL."""
    from leptonai.core.workspace import Workspace
    from leptonai.launch.registry import workspace_url

    with Workspace.open(url or workspace_url(home_directory(home))) as workspace:
        yield workspace


@contextmanager
def open_incidents(home: Path, url: str | None) -> Iterator[IncidentStore]:
    """The incidents of a workspace."""
    from leptonai.core.clock import SystemClock
    from leptonai.operations.incidents.incident_store import IncidentStore

    with open_workspace(home, url) as workspace:
        yield IncidentStore(workspace, clock=SystemClock())


@app.command(epilog=STATUS_EXAMPLES)
def status(
    home: HomeOption = DEFAULT_HOME, workspace: WorkspaceOption = None, as_json: JsonOption = False
) -> None:
    """Tell in a few lines whether anything is wrong: open incidents, running runs, calls that wait."""
    from leptonai.cli import ops_view
    from leptonai.launch.registry import RunRegistry

    with open_workspace(home, workspace) as opened:
        from leptonai.core.clock import SystemClock
        from leptonai.operations.incidents.incident_store import IncidentStore

        clock = SystemClock()
        incidents = IncidentStore(opened, clock=clock).list(only_open=True)
        runs = [each for each in RunRegistry(opened, clock=clock).list() if each.status == "running"]
        calls = _outbox(opened).calls()
    if as_json:
        print_json(ops_view.status_to_json(incidents, runs, calls))
    else:
        ops_view.print_status(incidents, runs, calls, out(), now_seconds=time.time())


@app.command(epilog=INCIDENTS_EXAMPLES)
def incidents(
    only_open: Annotated[bool, typer.Option("--open", help="Only those that go on.")] = False,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many.")] = 20,
    home: HomeOption = DEFAULT_HOME,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """List incidents: open ones first, then the latest."""
    from leptonai.cli import ops_view
    from leptonai.core.values import value_to_json

    with open_incidents(home, workspace) as store:
        found = store.list(only_open=only_open, limit=limit)
    if as_json:
        print_json([value_to_json(each) for each in found])
    elif not found:
        say(out(), "no incidents")
    else:
        out().print(ops_view.incident_table(found, now_seconds=time.time()))


@app.command(epilog=EXPLAIN_EXAMPLES)
def explain(
    number: NumberArgument,
    home: HomeOption = DEFAULT_HOME,
    workspace: WorkspaceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one incident: its likeliest cause, timeline, evidence, affected runs, and similar ones before."""
    from leptonai.cli import ops_view
    from leptonai.operations.incidents.similar import similar

    with open_incidents(home, workspace) as store:
        incident, timeline = store.get(number), store.timeline(number)
        alike = similar(incident, store.list(limit=1000))
    if as_json:
        print_json(ops_view.explained_to_json(incident, timeline, alike))
    else:
        ops_view.print_explained(incident, timeline, alike, out())


@app.command(epilog=CLOSE_EXAMPLES)
def close(
    number: NumberArgument,
    epoch: Annotated[
        int, typer.Option("--epoch", min=1, help="The opening you saw; a newer one is left alone.")
    ] = 1,
    home: HomeOption = DEFAULT_HOME,
    workspace: WorkspaceOption = None,
) -> None:
    """Close an incident by hand."""
    from leptonai.core.errors import Refused

    with open_incidents(home, workspace) as store:
        if not store.close(number, epoch=epoch, at_seconds=time.time()):
            found = store.get(number)
            state = f"was opened {found.epoch} times" if found.is_open else "is closed already"
            raise Refused(
                f"incident {number} {state}: nothing was changed",
                hint=f"look at it again: lepton ops explain {number}",
            )
    say(out(), f"incident {number} is closed")


@app.command(epilog=SILENCE_EXAMPLES)
def silence(
    reason: Annotated[str, typer.Option("--reason", help="Why.", show_default=False)],
    lasts: Annotated[str, typer.Option("--for", metavar="DURATION", help="How long, such as 2h.")] = "1h",
    cause: Annotated[str, typer.Option("--cause", help="Only this kind of alarm.")] = "",
    place: Annotated[str, typer.Option("--place", help="Only this node or run.")] = "",
    home: HomeOption = DEFAULT_HOME,
    workspace: WorkspaceOption = None,
) -> None:
    """Call nobody about some incidents for a while; they are still recorded."""
    from leptonai.core.units import parse_seconds
    from leptonai.operations.incidents.silences import Silence

    until = time.time() + parse_seconds(lasts)
    author = os.environ.get("USER", "")
    made = Silence(until_seconds=until, author=author, reason=reason, cause=cause, place=place)
    with open_workspace(home, workspace) as opened:
        number = _outbox(opened).silence(made)
    ends = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(until))
    say(out(), f"silence {number} until {ends}")


app.command(epilog=ops_top.EXAMPLES)(ops_top.top)


def _outbox(workspace: Workspace) -> Any:
    from leptonai.core.clock import SystemClock
    from leptonai.operations.incidents.notify import Outbox
    from leptonai.operations.incidents.send import send

    return Outbox(workspace, clock=SystemClock(), send=send)
