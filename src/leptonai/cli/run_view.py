"""What ``lepton runs show`` says of one run."""

from __future__ import annotations

import time
from typing import Any

from rich.console import Console

from leptonai.cli.output import facts, say, shown_path
from leptonai.cli.terminal_curve import Line, draw_lines, short
from leptonai.core.units import format_seconds
from leptonai.launch.curve import Curves, Point, along, in_epochs, spans_decades
from leptonai.launch.rundir import RunDirectory, RunSummary

MAX_WIDTH = 100


def print_run(run: RunDirectory, console: Console) -> None:
    """The facts of a run, then its curves."""
    summary = run.summary()
    console.print(facts(_facts(run, summary)))
    curves = run.curves()
    width = min(console.width, MAX_WIDTH)
    for title, lines, values in _drawings(curves):
        say(console, (f"\n{title}", "bold"))
        log = title == "loss" and spans_decades(values)
        across = "epoch" if in_epochs(curves) else "step"
        console.print(draw_lines(lines, width=width, height=8, log=log, across=across))


def run_to_json(run: RunDirectory) -> dict[str, Any]:
    """The same as JSON-ready values."""
    summary, curves = run.summary(), run.curves()
    return {
        "run_id": summary.run_id,
        "path": str(run.path.absolute()),
        "status": summary.status,
        "reason": summary.reason,
        "num_workers": summary.num_workers,
        "step": summary.step,
        "total_steps": summary.total_steps,
        "examples": summary.examples,
        "seconds": summary.seconds,
        "started_seconds": summary.started_seconds,
        "ended_seconds": summary.ended_seconds,
        "metrics": dict(summary.metrics),
        "privacy": None
        if summary.privacy is None
        else {"epsilon": summary.privacy[0], "delta": summary.privacy[1]},
        "curves": {"loss": curves.loss, "evaluated": dict(curves.evaluated)},
    }


def _facts(run: RunDirectory, summary: RunSummary) -> dict[str, str]:
    rows = {"run": summary.run_id, "status": _status(summary)}
    if run.job_path.is_file():
        rows["task"] = str(run.job().get("task", ""))
    if run.plan_path.is_file():
        plan = run.plan()
        rows["plan"] = f"{plan.strategy}, {plan.num_workers} worker(s), {plan.tuning.precision}"
    if summary.started_seconds:
        rows["started"] = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(summary.started_seconds))
    done, whole = (steps / summary.steps_per_epoch for steps in (summary.step, summary.total_steps))
    rows["progress"] = f"step {summary.step} of {summary.total_steps}, epoch {done:.4g} of {whole:.4g}"
    if summary.seconds > 0:
        speed = summary.examples / summary.seconds
        took = format_seconds(summary.seconds)
        rows["speed"] = f"{summary.examples:,} examples in {took}, {speed:,.0f} a second"
    if summary.privacy is not None:
        epsilon, delta = summary.privacy
        rows["privacy"] = f"epsilon {epsilon:.3f} at delta {delta:g}"
    rows |= {name: short(value) for name, value in summary.metrics.items()}
    rows["directory"] = shown_path(run.path)
    return rows


def _status(summary: RunSummary) -> str:
    return f"{summary.status}: {summary.reason}" if summary.reason else summary.status


def _drawings(curves: Curves) -> list[tuple[str, list[Line], list[float]]]:
    """Title, lines and all values of each drawing: the loss first, then each metric."""
    losses = curves.loss or curves.evaluated.get("loss", ())  # private runs tell the evaluation's alone
    drawings = [("loss", [as_line(losses, curves)], [value for _, value in losses])] if losses else []
    for name, points in curves.evaluated.items():
        if name != "loss":
            drawings.append((name, [as_line(points, curves)], [value for _, value in points]))
    return drawings


def as_line(points: tuple[Point, ...], curves: Curves, mark: str = "") -> Line:
    """Points of a curve on the scale that suits the run."""
    return Line(points=[(along(step, curves), value) for step, value in points], mark=mark)
