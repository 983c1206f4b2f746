"""``lepton runs``: what ran, how it went, and orders to a run that goes on."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leptonai.cli.find_run import RunArgument, find_run
from leptonai.cli.options import DEFAULT_HOME, HomeOption, JsonOption, home_directory
from leptonai.cli.output import out, print_json, say, shown_path, table
from leptonai.cli.terminal_curve import short

if TYPE_CHECKING:
    from leptonai.launch.registry import RegisteredRun

app = typer.Typer(
    help="List, show and compare runs, or send one an order.", no_args_is_help=True, rich_markup_mode="rich"
)

SHOW_EXAMPLES = """
[bold]Examples[/bold]

  lepton runs show last

  lepton runs show runs/mnist-20260801-120000-1a2b --open
"""
COMPARE_EXAMPLES = """
[bold]Example[/bold]

  lepton runs compare mnist-20260801-120000 mnist-20260801-130000
"""
MODE_EXAMPLES = """
[bold]Example[/bold]

  lepton runs mode last "ssp(3)"
"""


@app.command("list")
def list_runs(
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, newest first.")] = 20,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """List the runs in the register, newest first."""
    from leptonai.launch.registry import open_registry

    with open_registry(home_directory(home)) as registry:
        runs = [_up_to_date(run) for run in registry.list()[:limit]]
    if as_json:
        print_json([_row_to_json(run) for run in runs])
        return
    if not runs:
        say(out(), "no runs yet; start one with: lepton train JOB --cluster FILE")
        return
    rows = table("run", "status", "step", "result", "started", right=("step",))
    for run in runs:
        started = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.started_seconds))
        rows.add_row(run.run_id, run.status, str(run.step), _result(run.metrics), started)
    out().print(rows)


@app.command(epilog=SHOW_EXAMPLES)
def show(
    run: RunArgument,
    open_tensorboard: Annotated[
        bool, typer.Option("--open", help="Serve the run with TensorBoard on this machine until Ctrl-C.")
    ] = False,
    port: Annotated[int, typer.Option("--port", min=1, max=65535, help="Port of TensorBoard.")] = 6006,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Show one run: what it was, how it went, and its curves."""
    from leptonai.cli import run_view

    found = find_run(run, home_directory(home))
    if open_tensorboard:
        from leptonai.cli.tensorboard import serve

        serve(found.tensorboard_path, port=port, environment=os.environ)
    elif as_json:
        print_json(run_view.run_to_json(found))
    else:
        run_view.print_run(found, out())


@app.command(epilog=COMPARE_EXAMPLES)
def compare(
    runs: Annotated[list[str], typer.Argument(metavar="RUN...", help="Two or more.", show_default=False)],
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Compare runs: the settings that differ, the results, and the curves over one another."""
    from leptonai.cli import run_compare
    from leptonai.core.errors import InputError

    if len(runs) < 2:
        raise InputError("one run was named, comparing needs at least two", hint="see: lepton runs list")
    found = [find_run(word, home_directory(home)) for word in runs]
    if as_json:
        print_json(run_compare.comparison_to_json(found))
    else:
        run_compare.print_comparison(found, out())


@app.command()
def stop(run: RunArgument, home: HomeOption = DEFAULT_HOME) -> None:
    """Ask a run that goes on to save a checkpoint and end."""
    from leptonai.core.control import Halt, send_order

    found = find_run(run, home_directory(home))
    send_order(found.path, Halt())
    say(out(), f"asked {shown_path(found.path)} to stop")


@app.command()
def save(run: RunArgument, home: HomeOption = DEFAULT_HOME) -> None:
    """Ask a run that goes on to save a checkpoint now."""
    from leptonai.core.control import Save, send_order

    found = find_run(run, home_directory(home))
    send_order(found.path, Save())
    say(out(), f"asked {shown_path(found.path)} to save a checkpoint")


@app.command(epilog=MODE_EXAMPLES)
def mode(
    run: RunArgument,
    consistency: Annotated[
        str,
        typer.Argument(
            metavar="MODE", help="How far workers may drift apart from now on.", show_default=False
        ),
    ],
    home: HomeOption = DEFAULT_HOME,
) -> None:
    """Let a run with a parameter server go on under another consistency setting."""
    from leptonai.core.control import SwitchConsistency, send_order
    from leptonai.training.parameter_server.consistency import parse_consistency

    parse_consistency(consistency)  # a mode that does not exist is told here, with its hint
    found = find_run(run, home_directory(home))
    send_order(found.path, SwitchConsistency(mode=consistency))
    say(out(), f"asked {shown_path(found.path)} to go on with {consistency}")


def _up_to_date(run: RegisteredRun) -> RegisteredRun:
    """The register hears of steps and metrics only at the end; before that the journal knows."""
    from leptonai.launch.rundir import RunDirectory

    found = RunDirectory(run.path)
    if run.status not in ("running", "lost") or not found.events_path.is_file():
        return run
    summary = found.summary()
    return replace(run, step=summary.step, metrics=summary.metrics)


def _result(metrics: Mapping[str, float]) -> str:
    return "  ".join(f"{name} {short(value)}" for name, value in metrics.items() if name != "loss")


def _row_to_json(run: RegisteredRun) -> dict[str, Any]:
    return {
        "run_id": run.run_id,
        "path": str(run.path),
        "task": run.task,
        "status": run.status,
        "num_workers": run.num_workers,
        "started_seconds": run.started_seconds,
        "ended_seconds": run.ended_seconds,
        "step": run.step,
        "metrics": dict(run.metrics),
    }
