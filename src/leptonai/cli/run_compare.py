"""What ``lepton runs compare`` says of several runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import ascii_uppercase
from typing import Any

from rich.console import Console

from leptonai.cli.output import say, shown_path, table
from leptonai.cli.run_view import MAX_WIDTH
from leptonai.cli.terminal_curve import STYLES, Line, draw_lines, short
from leptonai.launch.curve import Curves, Point, spans_decades
from leptonai.launch.rundir import RunDirectory, RunSummary

ABSENT = "-"


def print_comparison(runs: Sequence[RunDirectory], console: Console) -> None:
    """A letter for each run, a table of what differs and of the results, and the curves over one another."""
    marks = [ascii_uppercase[place % 26] for place in range(len(runs))]
    for place, (mark, run) in enumerate(zip(marks, runs, strict=True)):
        style = STYLES[place % len(STYLES)]
        say(console, (mark, f"bold {style}"), f"  {shown_path(run.path)}")
    console.print()
    rows = table("", *marks)
    for name, values in differences([settings(run) for run in runs]).items():
        rows.add_row(name, *(_shown(value) for value in values))
    for name, texts in _results([run.summary() for run in runs]).items():
        rows.add_row(name, *texts, style="bold")
    console.print(rows)
    curves = [run.curves() for run in runs]
    _print_overlay("loss", [each.loss for each in curves], curves, marks, console)
    for name in common_metrics(curves):
        _print_overlay(name, [each.evaluated[name] for each in curves], curves, marks, console)


def comparison_to_json(runs: Sequence[RunDirectory]) -> dict[str, Any]:
    """The same as JSON-ready values; lists are in the order of the runs."""
    summaries = [run.summary() for run in runs]
    return {
        "runs": [str(run.path.absolute()) for run in runs],
        "differences": differences([settings(run) for run in runs]),
        "results": [
            {
                "status": each.status,
                "step": each.step,
                "examples": each.examples,
                "seconds": each.seconds,
                "metrics": dict(each.metrics),
            }
            for each in summaries
        ],
    }


def settings(run: RunDirectory) -> dict[str, Any]:
    """Everything that was decided before the run began, flat: the job's settings and the plan's choices."""
    job = run.job()
    values = flatten(dict(job.get("identity", {})) | {"framework": job.get("framework")})
    if run.plan_path.is_file():
        plan = run.plan()
        values |= {
            "plan.strategy": plan.strategy,
            "plan.workers": plan.num_workers,
            "plan.precision": plan.tuning.precision,
            "plan.memory_format": plan.tuning.memory_format,
            "plan.compile": plan.tuning.compile,
            "plan.threads": plan.tuning.threads,
        }
    return values


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted names.

    >>> flatten({"epochs": 2, "optimizer": {"lr": 0.1}})
    {'epochs': 2, 'optimizer.lr': 0.1}
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def differences(each: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Names whose values are not the same everywhere, with the value (or None) of each.

    >>> differences([{"lr": 0.1, "seed": 0}, {"lr": 0.2, "seed": 0}])
    {'lr': [0.1, 0.2]}
    """
    names = dict.fromkeys(name for values in each for name in values)
    columns = {name: [values.get(name) for values in each] for name in names}
    return {name: column for name, column in columns.items() if any(value != column[0] for value in column)}


def common_metrics(curves: Sequence[Curves]) -> list[str]:
    """Metrics that every run evaluated, but for the loss."""
    first, *others = curves
    return [
        name for name in first.evaluated if name != "loss" and all(name in one.evaluated for one in others)
    ]


def _results(summaries: Sequence[RunSummary]) -> dict[str, list[str]]:
    rows = {
        "status": [each.status for each in summaries],
        "steps": [f"{each.step}" for each in summaries],
        "seconds": [f"{each.seconds:.1f}" for each in summaries],
    }
    for name in dict.fromkeys(name for each in summaries for name in each.metrics):
        rows[name] = [short(each.metrics[name]) if name in each.metrics else ABSENT for each in summaries]
    return rows


def _shown(value: Any) -> str:
    return ABSENT if value is None else short(value) if isinstance(value, float) else str(value)


def _print_overlay(
    title: str,
    series: Sequence[tuple[Point, ...]],
    curves: Sequence[Curves],
    marks: Sequence[str],
    console: Console,
) -> None:
    """Across runs the common scale is the step if all have as many of them in an epoch, else the epoch."""
    by_step = len({each.steps_per_epoch for each in curves}) == 1
    lines = [
        Line(points=_along(points, each, by_step), mark=mark)
        for points, each, mark in zip(series, curves, marks, strict=True)
    ]
    log = title == "loss" and spans_decades([value for points in series for _, value in points])
    say(console, (f"\n{title}", "bold"))
    width = min(console.width, MAX_WIDTH)
    console.print(draw_lines(lines, width=width, height=8, log=log, across="step" if by_step else "epoch"))


def _along(points: tuple[Point, ...], curves: Curves, by_step: bool) -> list[tuple[float, float]]:
    unit = 1 if by_step else curves.steps_per_epoch
    return [(step / unit, value) for step, value in points]
