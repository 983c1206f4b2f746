"""``lepton train``: run a job on a cluster."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from leptonai.cli.options import (
    DEFAULT_HOME,
    ClusterOption,
    HomeOption,
    JobArgument,
    JsonOption,
    SetOption,
    home_directory,
    read_cluster_file,
)
from leptonai.cli.output import INTERRUPTED_CODE, err, out, print_json, say, shown_path, table
from leptonai.core.errors import InputError, LeptonError

if TYPE_CHECKING:
    from leptonai.compute.engines.local import LocalEngine
    from leptonai.launch.request import RunResult, TrainRequest

EXAMPLES = """
[bold]Examples[/bold]

  lepton train job.py --cluster cluster.yaml

  lepton train job.py -c cluster.yaml --set epochs=2 --set optimizer.lr=0.01

  lepton train job.py -c cluster.yaml --run-dir runs/mine --resume

[dim]Ctrl-C saves a checkpoint and ends the run; --resume goes on from there.[/dim]
"""

RunDirOption = Annotated[
    Path | None,
    typer.Option(
        "--run-dir",
        metavar="DIR",
        help="Where the run keeps its files. Default: runs/TASK-DATE-TIME-XXXX below the current directory.",
        show_default=False,
    ),
]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Go on from the last good checkpoint in the run directory.")
]
NoAutotuneOption = Annotated[
    bool,
    typer.Option("--no-autotune", help="Do not time alternatives first; use float32 and plain settings."),
]


def train(
    job: JobArgument,
    cluster: ClusterOption,
    run_dir: RunDirOption = None,
    resume: ResumeOption = False,
    settings: SetOption = None,
    no_autotune: NoAutotuneOption = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Train the job on the cluster, show progress, and leave everything in the run directory."""
    # First of all the engine: its imports take seconds, in which this process reads its files.
    with engine_for(job, home) as engine:
        request = request_for(
            job,
            cluster,
            run_dir=run_dir,
            resume=resume,
            settings=settings,
            autotune=not no_autotune,
            home=home,
        )
        result = run_with_progress(request, engine, quiet=as_json)
    if as_json:
        from leptonai.launch.request import result_to_json

        print_json(result_to_json(result))
    else:
        print_result(result, out())
    if result.status == "interrupted":
        raise typer.Exit(INTERRUPTED_CODE)


@contextlib.contextmanager
def engine_for(job: Path, home: Path) -> Iterator[LocalEngine]:
    """The engine that will run this job, starting up."""
    from leptonai.launch.engine import likely_framework, start_engine

    if not job.is_file():  # launch would find out too, after seconds of imports
        raise InputError(f"{job}: there is no such job file")
    # Job files look for data sets where the environment says; the workers inherit this one.
    os.environ["LEPTON_HOME"] = str(home_directory(home))
    with start_engine(likely_framework(job)) as engine:
        yield engine


def request_for(
    job: Path,
    cluster: Path,
    *,
    run_dir: Path | None = None,
    resume: bool = False,
    settings: list[str] | None,
    autotune: bool = True,
    home: Path,
) -> TrainRequest:
    """What ``train`` and ``plan`` ask of launch, from the words of the command line."""
    from leptonai.launch.jobs import JobFile
    from leptonai.launch.request import TrainRequest

    found, text = read_cluster_file(cluster)
    return TrainRequest(
        job=JobFile(path=job),
        cluster=found,
        cluster_text=text,
        run_dir=run_dir,
        resume=resume,
        overrides=tuple(settings or ()),
        autotune=autotune,
        home=home_directory(home),
        ledger_url=os.environ.get("LEPTON_WORKSPACE"),
    )


def run_with_progress(request: TrainRequest, engine: LocalEngine, *, quiet: bool) -> RunResult:
    """Train with a display on standard error."""
    from leptonai.cli.progress import TrainDisplay
    from leptonai.launch.run import train as launch_train

    display = TrainDisplay(err(), quiet=quiet)
    try:
        return launch_train(request, on_event=display, engine=engine)
    except KeyboardInterrupt:
        say(err(), "interrupted: all workers have ended")
        raise
    except LeptonError:
        if display.run_id:  # it began, so there are logs to look at
            kept = request.run_dir or Path("runs") / display.run_id
            say(err(), f"run directory  {shown_path(kept)}")
        raise
    finally:
        display.close()


def print_result(result: RunResult, console: Console) -> None:
    """The table of results, then where everything is."""
    metrics = {name: value for name, value in result.metrics.items() if name != "loss"}
    numbers = (*metrics, "examples", "seconds")
    made = table("task", *numbers, right=numbers)
    values = [f"{value:.4f}" for value in metrics.values()]
    made.add_row(result.task, *values, f"{result.examples:,}", f"{result.seconds:.1f}")
    console.print(made)
    console.print()
    if result.status != "done":
        say(console, f"{result.status} after step {result.step}; go on with --resume")
    say(console, f"run directory  {shown_path(result.run_dir)}")
    if result.checks:
        from leptonai.cli.plan_check import check_table

        say(console)
        console.print(check_table(result.checks))
        say(console)
    elif result.predicted_step_seconds and result.measured_step_seconds:
        predicted, measured = result.predicted_step_seconds * 1e3, result.measured_step_seconds * 1e3
        say(console, f"one step       {measured:.3g} ms measured, {predicted:.3g} ms predicted")
    if result.privacy is not None:
        epsilon, delta = result.privacy
        say(console, f"privacy        epsilon {epsilon:.3f} at delta {delta:g}; see privacy.html there")
    say(console, f"look closer    lepton runs show {result.run_id}")
