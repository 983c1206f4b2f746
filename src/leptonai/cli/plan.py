"""``lepton plan``: what would run and what it should cost, without training; and how a run's plan held."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from leptonai.cli.options import (
    DEFAULT_HOME,
    HomeOption,
    JsonOption,
    SetOption,
    home_directory,
    naming,
    read_cluster_file,
)
from leptonai.cli.output import err, out, print_json
from leptonai.cli.search_progress import search_progress
from leptonai.cli.train import engine_for, request_for
from leptonai.core.errors import InputError

if TYPE_CHECKING:
    from leptonai.compute.search.rows import Goal
    from leptonai.launch.planning import Answer, WorkerChoice

EXAMPLES = """
[bold]Examples[/bold]

  lepton plan job.py --cluster cluster.yaml

  lepton plan job.py -c cluster.yaml --goal time --explain

  lepton plan --model gpt-22b --batch 1024 -c gpus.yaml --goal price

  lepton plan --check last
"""

OptionalJob = Annotated[
    Path | None,
    typer.Argument(metavar="[JOB]", help="A Python file with a TrainJob named job.", show_default=False),
]
OptionalCluster = Annotated[
    Path | None,
    typer.Option("--cluster", "-c", metavar="FILE", help="The cluster file (YAML).", show_default=False),
]
GoalOption = Annotated[
    str | None,
    typer.Option(
        "--goal",
        metavar="time|price|memory|energy",
        help="Search for the layout that makes this small.",
        show_default=False,
    ),
]


def plan(
    job: OptionalJob = None,
    cluster: OptionalCluster = None,
    settings: SetOption = None,
    goal: GoalOption = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME|NUMBERS",
            help="In place of a job: a known transformer, or layers,hidden,heads,sequence,vocabulary,feed_forward.",
            show_default=False,
        ),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", min=1, help="With --model: examples of one step.", show_default=False),
    ] = None,
    explain: Annotated[
        bool, typer.Option("--explain", help="Show the Pareto front, and why each other family lost.")
    ] = False,
    check: Annotated[
        str | None,
        typer.Option(
            "--check",
            metavar="RUN",
            help="Hold the plan of a run against what was measured; a directory, a name, or last.",
            show_default=False,
        ),
    ] = None,
    home: HomeOption = DEFAULT_HOME,
    as_json: JsonOption = False,
) -> None:
    """Show what would run where and what a step should cost; with a goal, search for the best layout."""
    if check is not None:
        if job is not None or model is not None:
            raise InputError("--check takes a run, not a job or a model", hint="lepton plan --check RUN")
        _check(check, home, as_json=as_json)
        return
    if cluster is None:
        raise InputError("--cluster is missing", hint="lepton plan JOB --cluster FILE")
    if model is not None:
        if job is not None:
            raise InputError("a job and --model are both given", hint="keep one of them")
        if settings:
            raise InputError("--set is for the settings of a job", hint="leave it out beside --model")
        if batch is None:
            raise InputError("--model needs --batch", hint="say how many examples one step takes")
        _plan_model(model, cluster, batch, goal, explain=explain, as_json=as_json)
    elif job is None:
        raise InputError("nothing to plan", hint="name a job file, or a transformer with --model")
    elif batch is not None:
        raise InputError(
            "--batch is for --model; a job has its own batch", hint=f"--set global_batch_size={batch}"
        )
    else:
        _plan_job(job, cluster, settings, goal, home, explain=explain, as_json=as_json)


def _goal(word: str) -> Goal:
    from leptonai.compute.search.rows import GOALS

    for goal in GOALS:
        if word == goal:
            return goal
    raise InputError(f"unknown goal {word!r}", hint=f"one of: {', '.join(GOALS)}")


def _plan_job(
    job: Path,
    cluster: Path,
    settings: list[str] | None,
    goal: str | None,
    home: Path,
    *,
    explain: bool,
    as_json: bool,
) -> None:
    from leptonai.cli.plan_view import print_plan
    from leptonai.cli.plan_workers import print_workers
    from leptonai.launch.engine import likely_framework
    from leptonai.launch.planning import (
        answer_workload,
        consistency_of,
        has_accelerators,
        worker_choices,
    )
    from leptonai.launch.run import make_plan

    wanted = None if goal is None else _goal(goal)
    request = request_for(job, cluster, settings=settings, home=home)
    with engine_for(job, home) as engine:
        made = make_plan(request, engine=engine)
    answer: Answer | None = None
    workers: tuple[WorkerChoice, ...] = ()
    if wanted is not None and has_accelerators(request.cluster):
        with naming(cluster), search_progress(err()) as progress:
            answer = answer_workload(
                made.workload, request.cluster, goal=wanted, on_progress=progress, consistency=consistency_of(made),
                precision=made.tuning.precision,
            )  # fmt: skip
    elif wanted is not None:
        framework = likely_framework(job)
        workers = worker_choices(made, request.cluster, framework=framework, home=request.home, goal=wanted)
    if as_json:
        searched = {} if answer is None else {"search": answer.to_json()}
        chosen = {"workers": [each.to_json() for each in workers]} if workers else {}
        print_json({**made.to_json(), **searched, **chosen})
        return
    print_plan(made, out(), explain=explain)
    if answer is not None:
        out().print()
        _print_answer(answer, explain=explain)
    if workers:
        out().print()
        print_workers(workers, out())


def _plan_model(
    model: str, cluster: Path, batch: int, goal: str | None, *, explain: bool, as_json: bool
) -> None:
    from leptonai.compute.models import find_model
    from leptonai.launch.planning import answer_transformer

    found, _ = read_cluster_file(cluster)
    transformer, wanted = find_model(model), _goal(goal or "time")
    with naming(cluster), search_progress(err()) as progress:
        answer = answer_transformer(transformer, found, global_batch=batch, goal=wanted, on_progress=progress)
    if as_json:
        print_json(answer.to_json())
    else:
        _print_answer(answer, explain=explain)


def _print_answer(answer: Answer, *, explain: bool) -> None:
    from leptonai.cli.plan_answer import print_answer

    print_answer(answer, out(), explain=explain)


def _check(run: str, home: Path, *, as_json: bool) -> None:
    from leptonai.cli.find_run import find_run
    from leptonai.cli.plan_check import print_check
    from leptonai.launch.checking import check_run

    found = check_run(find_run(run, home_directory(home)), home_directory(home))
    if as_json:
        print_json(found.to_json())
    else:
        print_check(found, out())
