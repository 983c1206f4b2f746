"""Test accuracy of private training: MNIST and CIFAR-10, five seeds each, by ``lepton train``.

``python -m benchmarks.private_accuracy [--json] [--runs 5] [--only FIGURE ...] [--quick]``

Run k uses seed k + 1; the sampling and the noise are secret and fresh in every run, so a repetition gives other
numbers. Recipes were chosen on a held-out part of the training set (``benchmarks.private_accuracy_search``); each
run looks at the test set once, at its end.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import mean

from benchmarks.contestants import lepton
from benchmarks.figures import Benchmark, Column, Figure, Options, run_benchmark
from benchmarks.harness import ROOT, Contest, Contestant, Results
from benchmarks.private_accuracy_tried import PREFACE
from benchmarks.progress import Progress, Run, Unmeasured, final_accuracy, from_events, number
from leptonai.launch.jobs import load_job
from leptonai.training.data.datasets import default_places

OURS = "lepton"
QUICK_JOB = ROOT / "benchmarks" / "workloads" / "private_quick_job.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One data set with its job file and what is asked of it.

    Args:
        prefix: of its figures' names.
        goal: mean test accuracy, in percent.
        epsilon: the most the run may cost, at delta 1e-5.
    """

    name: str
    prefix: str
    job: Path
    goal: float
    epsilon: float


EXAMPLE = ROOT / "examples" / "private-mnist"
TASKS = (
    Task(name="MNIST", prefix="mnist", job=EXAMPLE / "job.py", goal=98.1, epsilon=2.93),
    Task(
        name="CIFAR-10",
        prefix="cifar10",
        job=ROOT / "benchmarks" / "workloads" / "private_cifar10_job.py",
        goal=69.0,
        epsilon=3.0,
    ),
)


def build(options: Options) -> Sequence[Contest]:
    """One contest a task, with ourselves alone; the features are computed here, before any run."""
    chosen = [task for task in TASKS if any(name.startswith(f"{task.prefix}_") for name in options.only)]
    for task in () if options.quick else chosen:
        load_job(task.job).load_data()
    return tuple(Contest(name=task.name, contestants=(_ours(task, quick=options.quick),)) for task in chosen)


def _ours(task: Task, *, quick: bool) -> Contestant:
    cache = default_places(os.environ).cache
    plain = lepton(
        OURS,
        job=QUICK_JOB if quick else task.job,
        cluster=EXAMPLE / "cluster.yaml",
        settings=lambda turn: (f"seed={turn + 1}",),
        autotune=False,
        environment={"BENCHMARK_TASK": task.prefix, "OMP_NUM_THREADS": "1"},
    )

    def command(folder: Path, turn: int) -> Sequence[str]:
        # Each run has a home, and so a ledger, of its own; the features are the same for all.
        (folder / "seed").write_text(str(turn + 1))
        (folder / "home").mkdir()
        cache.mkdir(parents=True, exist_ok=True)
        (folder / "home" / "data").symlink_to(cache.absolute())
        return plain.command(folder, turn)

    return replace(plain, command=command, read=_read, notes=partial(_notes, task))


def _read(folder: Path) -> Progress:
    """The run's events, with what it cost as the numbers ``epsilon`` and ``delta``."""
    lines = (folder / "run" / "events.jsonl").read_text().splitlines()
    progress = from_events(lines)
    spent = [event for event in map(json.loads, lines) if event.get("kind") == "privacy_spent"]
    if not spent:
        raise Unmeasured("the run reported no privacy loss")
    if not progress.accuracies:
        raise Unmeasured("the run measured no accuracy")
    cost: Mapping[str, float] = {name: float(spent[-1][name]) for name in ("epsilon", "delta")}
    return replace(progress, numbers={**progress.numbers, **cost})


def _notes(task: Task, folder: Path) -> Sequence[str]:
    """The run's own figures, so that the page shows every seed."""
    progress, seed = _read(folder), (folder / "seed").read_text()
    epsilon, delta = progress.numbers["epsilon"], progress.numbers["delta"]
    said = f"{task.name}, seed {seed}: test accuracy {progress.accuracies[-1].value:.2%}"
    return (f"{said} at epsilon {epsilon:.3f}, delta {delta:g}",)


def _figures(task: Task) -> tuple[Figure, Figure]:
    def of_runs(
        of: Callable[[Sequence[float]], float], read: Callable[[Run], float]
    ) -> Callable[[Results], float]:
        return lambda results: of([read(run) for run in results.of(task.name, OURS)])

    accuracy = Figure(
        name=f"{task.prefix}_accuracy",
        contest=task.name,
        contestants=(OURS,),
        value=of_runs(mean, percent),
        goal=task.goal,
        better="higher",
        unit="%",
        note="mean over the runs",
    )
    epsilon = Figure(
        name=f"{task.prefix}_epsilon",
        contest=task.name,
        contestants=(OURS,),
        value=of_runs(max, epsilon_spent),
        goal=task.epsilon,
        better="lower",
        unit="at delta 1e-5",
        note="largest of the runs",
    )
    return accuracy, epsilon


def percent(run: Run) -> float:
    """The last test accuracy, in percent."""
    return final_accuracy(run) * 100


def epsilon_spent(run: Run) -> float:
    """What the run cost at delta 1e-5.

    Raises:
        Unmeasured: it was told at another delta.
    """
    if number(run, "delta") != 1e-5:
        raise Unmeasured(f"{run.contestant}: epsilon was told at delta {number(run, 'delta')}, expected 1e-5")
    return number(run, "epsilon")


COLUMNS = tuple(
    column
    for task in TASKS
    for column in (
        Column(contest=task.name, title="test accuracy, %", of_run=percent, digits=2),
        Column(contest=task.name, title="epsilon", of_run=epsilon_spent, digits=3),
        Column(
            contest=task.name,
            title="whole command, s",
            of_run=lambda run: run.ended_at_seconds - run.started_at_seconds,
            digits=0,
        ),
    )
)

BENCHMARK = Benchmark(
    name="private_accuracy",
    build=build,
    figures=tuple(figure for task in TASKS for figure in _figures(task)),
    columns=COLUMNS,
    preface=PREFACE,
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark with the words of the command line."""
    return run_benchmark(BENCHMARK, argv)


if __name__ == "__main__":
    sys.exit(main())
