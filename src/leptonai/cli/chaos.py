"""``lepton chaos``: run a job while things go wrong, and tell what came of it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from leptonai.cli.options import DEFAULT_HOME, ClusterOption, HomeOption, JobArgument, JsonOption, SetOption
from leptonai.cli.output import INTERRUPTED_CODE, err, facts, out, print_json, say, shown_path, table
from leptonai.cli.train import NoAutotuneOption, RunDirOption, engine_for, request_for
from leptonai.core.errors import InputError, LeptonError
from leptonai.core.units import format_seconds

if TYPE_CHECKING:
    from leptonai.compute.engines.local import LocalEngine
    from leptonai.core.events import Event
    from leptonai.launch.fault_report import FaultReport
    from leptonai.launch.request import RunResult, TrainRequest

EXAMPLES = """
[bold]Examples[/bold]

  lepton chaos job.py -c cluster.yaml --faults "kill worker 1 at 30; kill server 0 at 50"

  lepton chaos job.py -c cluster.yaml --faults "random 20 kills" --seed 7

  lepton chaos job.py -c cluster.yaml --faults "slow worker 0 from 0 by 4x; fill disk at 100"

[dim]Faults: kill, stop, slow, cut, drop, corrupt (ROLE NUMBER at STEP), fill disk, random COUNT KINDS.[/dim]
"""

FaultsOption = Annotated[
    str,
    typer.Option("--faults", metavar="TEXT", help="What shall go wrong, and when.", show_default=False),
]
SeedOption = Annotated[
    int, typer.Option("--seed", metavar="N", help="For random faults that name no seed of their own.", min=0)
]


def chaos(
    job: JobArgument,
    cluster: ClusterOption,
    faults: FaultsOption,
    seed: SeedOption = 0,
    run_dir: RunDirOption = None,
    settings: SetOption = None,
    no_autotune: NoAutotuneOption = False,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Train the job while faults are injected; show each fault, the recovery from it, and what was lost."""
    from leptonai.core.fault_text import parse_faults
    from leptonai.core.faults import with_seed

    script = with_seed(parse_faults(faults), seed)
    if not script:
        raise InputError("--faults: there is no fault in it", hint='such as --faults "kill worker 1 at 30"')
    with engine_for(job, home) as engine:
        plain = request_for(
            job, cluster, run_dir=run_dir, settings=settings, autotune=not no_autotune, home=home
        )
        events: list[Event] = []
        try:
            result = _run(dataclasses.replace(plain, faults=script), engine, events, quiet=as_json)
        except LeptonError:
            if events and not as_json:  # what was recovered from before the run gave up
                print_report(_report(events, None), err())
            raise
    report = _report(events, result)
    if as_json:
        print_json({**report_to_json(report), "status": result.status, "run_dir": str(result.run_dir)})
    else:
        print_report(report, out())
        say(out(), f"\n{result.status} after step {result.step}")
        say(out(), f"run directory  {shown_path(result.run_dir)}")
    if result.status == "interrupted":
        raise typer.Exit(INTERRUPTED_CODE)


def _run(request: TrainRequest, engine: LocalEngine, events: list[Event], *, quiet: bool) -> RunResult:
    """Train with the display of ``lepton train``, keeping all events."""
    from leptonai.cli.progress import TrainDisplay
    from leptonai.launch.run import train

    display = TrainDisplay(err(), quiet=quiet)

    def on_event(event: Event) -> None:
        events.append(event)
        display(event)

    try:
        return train(request, on_event=on_event, engine=engine)
    finally:
        display.close()


def _report(events: list[Event], result: RunResult | None) -> FaultReport:
    from leptonai.launch.fault_report import fault_report

    if result is None:
        return fault_report(events)
    report = fault_report(events, examples_per_epoch=_examples_per_epoch(result.run_dir))
    return dataclasses.replace(report, pushes_lost=result.pushes_lost)


def _examples_per_epoch(run_dir: Path) -> int | None:
    """As the run's own description of its data has it."""
    from leptonai.launch.rundir import open_run

    found = open_run(run_dir).job().get("identity", {}).get("data", {}).get("train")
    count = found.get("num_examples") if isinstance(found, dict) else None
    return count if isinstance(count, int) else None


def print_report(report: FaultReport, console: Console) -> None:
    """A row a fault, then the books."""
    if report.faults:
        made = table("fault", "where", "step", "recovered in", right=("step", "recovered in"))
        for fault in report.faults:
            seconds = fault.recovered_seconds
            recovered = "-" if seconds is None else format_seconds(seconds)
            made.add_row(fault.what.split()[0], fault.where, str(fault.step), recovered)
        console.print(made)
    else:
        say(console, "no fault has struck: the run ended before its step, or has no such process")
    console.print()
    rows = {
        "workers lost": str(report.workers_lost),
        "servers restarted": str(report.servers_restarted),
        "samples": f"{_count(report.samples_lost)} lost, {_count(report.samples_repeated)} repeated "
        f"in {report.epochs} whole epoch(s)",
    }
    if report.pushes_lost is not None:
        rows["acknowledged pushes"] = f"{report.pushes_lost:,} lost"
    console.print(facts(rows))


def _count(value: int | None) -> str:
    return "not known" if value is None else f"{value:,}"


def report_to_json(report: FaultReport) -> dict[str, Any]:
    """The report as JSON-ready values."""
    return dataclasses.asdict(report)
