"""From finished runs to figures with goals, as a JSON line, a table and a results file."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from benchmarks import machine
from benchmarks.harness import ROOT, Contest, Results, hold
from benchmarks.progress import Run, Unmeasured, median, spread

Better = Literal["higher", "lower"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number that is claimed, and what it must be; ``goal`` None means that nothing is promised.

    ``value`` is computed from the results; ``contest`` and ``contestants`` say which runs it needs.
    """

    name: str
    contest: str
    contestants: tuple[str, ...]
    value: Callable[[Results], float]
    goal: float | None
    better: Better
    unit: str = "ratio"
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """One measured quantity of a contest, shown for each contestant with median and spread."""

    contest: str
    title: str
    of_run: Callable[[Run], float]
    digits: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """A theme: its contests, figures and table columns.

    Args:
        name: the module's name.
        build: contests for the given options.
        figures, columns: what is computed from them.
        packages: those of our own environment whose versions are recorded.
        peer_versions: versions in the peers' environment.
        num_runs: of each contestant, where ``--runs`` does not say.
        preface: paragraphs of the results file that say what was measured and under which assumptions.
    """

    name: str
    build: Callable[[Options], Sequence[Contest]]
    figures: tuple[Figure, ...]
    columns: tuple[Column, ...]
    packages: tuple[str, ...] = ("torch", "numpy")
    peer_versions: Mapping[str, str] = field(default_factory=dict)
    num_runs: int = 5
    preface: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The words of a benchmark's command line; ``folder`` is for files that contestants share."""

    num_runs: int
    only: tuple[str, ...]
    quick: bool
    as_json: bool
    contestants: frozenset[str] = frozenset()


def ratio_of_medians(
    contest: str, ours: str, theirs: str, of_run: Callable[[Run], float]
) -> Callable[[Results], float]:
    """A figure's value: the median of ``ours`` divided by the median of ``theirs``."""

    def value(results: Results) -> float:
        mine = median([of_run(run) for run in results.of(contest, ours)])
        peer = median([of_run(run) for run in results.of(contest, theirs)])
        return mine / peer

    return value


def judge(figure: Figure, results: Results) -> dict[str, Any]:
    """The figure as JSON values; one that could not be measured is null and not met, and says why."""
    judged: dict[str, Any] = {"goal": figure.goal, "better": figure.better, "unit": figure.unit}
    try:
        value = figure.value(results)
    except Unmeasured as reason:
        return {"value": None, **judged, "met": False, "note": str(reason).splitlines()[-1]}
    judged = {"value": round(value, 4), **judged, "met": is_met(value, figure.goal, figure.better)}
    return {**judged, "note": figure.note} if figure.note else judged


def is_met(value: float, goal: float | None, better: Better) -> bool:
    """Whether ``value`` is as good as ``goal``.

    >>> is_met(1.02, 1.0, "higher"), is_met(1.02, 1.0, "lower")
    (True, False)
    """
    if math.isnan(value):
        return False
    if goal is None:
        return True
    return value >= goal if better == "higher" else value <= goal


def parse_options(argv: Sequence[str] | None, benchmark: Benchmark) -> Options:
    """Read the command line."""
    names = [figure.name for figure in benchmark.figures]
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{benchmark.name}")
    parser.add_argument("--json", action="store_true", help="print nothing but the JSON line")
    parser.add_argument(
        "--runs", type=int, default=benchmark.num_runs, help="runs of each contestant, at least 1"
    )
    parser.add_argument(
        "--only", nargs="+", choices=names, default=names, metavar="FIGURE", help=", ".join(names)
    )
    parser.add_argument(
        "--quick", action="store_true", help="one tiny run each: shows that it works, measures nothing"
    )
    words = parser.parse_args(argv)
    if words.runs < 1:
        parser.error("--runs: expected at least 1")
    return Options(
        num_runs=1 if words.quick else words.runs,
        only=tuple(dict.fromkeys(words.only)),
        quick=words.quick,
        as_json=words.json,
    )


def run_benchmark(
    benchmark: Benchmark, argv: Sequence[str] | None = None, *, results_folder: Path | None = None
) -> int:
    """Hold the contests that the chosen figures need, print what came out, and return the exit code.

    0 when every figure was measured, whether or not its goal was met; 4 when one could not be.
    """
    options = parse_options(argv, benchmark)
    figures = [figure for figure in benchmark.figures if figure.name in options.only]
    wanted = {(figure.contest, name) for figure in figures for name in figure.contestants}
    contests = [
        contest.only(frozenset(name for of, name in wanted if of == contest.name))
        for contest in benchmark.build(replace(options, contestants=frozenset(name for _, name in wanted)))
        if any(of == contest.name for of, _ in wanted)
    ]
    results = hold(contests, num_runs=options.num_runs)
    line: dict[str, Any] = {
        "benchmark": benchmark.name,
        "figures": {figure.name: judge(figure, results) for figure in figures},
    }
    if options.quick:
        line["quick"] = True
    if not options.as_json:
        _show(benchmark, results, line)
        if not options.quick:
            _write_results(benchmark, results, line, results_folder or ROOT / "benchmarks" / "results", argv)
    sys.stdout.write(json.dumps(line) + "\n")
    return 0 if all(judged["value"] is not None for judged in line["figures"].values()) else 4


def summary_rows(benchmark: Benchmark, results: Results) -> list[tuple[str, str, str, str, str, str]]:
    """Rows (contest, contestant, quantity, median, smallest to largest, runs) of everything measured."""
    rows = []
    for column in benchmark.columns:
        for contestant, runs in results.runs.get(column.contest, {}).items():
            try:
                values = [column.of_run(run) for run in runs]
            except Unmeasured as reason:
                rows.append((column.contest, contestant, column.title, "-", str(reason), str(len(runs))))
                continue
            low, high = spread(values)
            middle = f"{median(values):,.{column.digits}f}"
            between = f"{low:,.{column.digits}f} to {high:,.{column.digits}f}"
            rows.append((column.contest, contestant, column.title, middle, between, str(len(values))))
    return rows


def notes(results: Results) -> list[str]:
    """What contestants said about their runs, each sentence once, and who failed."""
    said = [
        f"{contestant}: {note}"
        for by_contestant in results.runs.values()
        for contestant, runs in by_contestant.items()
        for run in runs
        for note in run.notes
    ]
    failed = [f"{name} failed: {reason.splitlines()[-1]}" for name, reason in results.failures.items()]
    return list(dict.fromkeys([*said, *failed]))


def figure_rows(line: Mapping[str, Any]) -> list[tuple[str, str, str, str]]:
    """Rows (figure, value, goal, met) of the JSON line."""
    rows = []
    for name, judged in line["figures"].items():
        value = "-" if judged["value"] is None else f"{judged['value']:.3f}"
        sign = "at least" if judged["better"] == "higher" else "at most"
        goal = "none" if judged["goal"] is None else f"{sign} {judged['goal']} {judged['unit']}"
        met = "-" if judged["goal"] is None else "yes" if judged["met"] else "no"
        rows.append((name, value, goal, met))
    return rows


def _show(benchmark: Benchmark, results: Results, line: Mapping[str, Any]) -> None:
    console = Console()
    measured = Table(
        "contest", "contestant", "quantity", "median", "smallest to largest", "runs", title=benchmark.name
    )
    for row in summary_rows(benchmark, results):
        measured.add_row(*row)
    judged = Table("figure", "value", "must be", "met")
    for figure in figure_rows(line):
        judged.add_row(*figure)
    console.print(measured, judged)
    for note in notes(results):
        console.print(note, markup=False)
    if line.get("quick"):
        console.print("quick: these numbers show that the benchmark runs; they measure nothing")


def _write_results(
    benchmark: Benchmark, results: Results, line: Mapping[str, Any], folder: Path, argv: Sequence[str] | None
) -> None:
    slug = machine.hardware_slug(machine.cpu_name(), machine.num_cores())
    path = folder / f"{benchmark.name}_{slug}_{time.strftime('%Y%m')}.md"
    folder.mkdir(parents=True, exist_ok=True)
    words = " ".join(sys.argv[1:] if argv is None else argv)
    path.write_text(results_text(benchmark, results, line, words))


def results_text(benchmark: Benchmark, results: Results, line: Mapping[str, Any], words: str) -> str:
    """The results file: command, hardware, versions, medians and spreads, figures."""
    found = {**benchmark.peer_versions, **machine.versions(benchmark.packages)}
    parts = [
        f"# {benchmark.name}",
        "",
        f"- command: `{f'python -m benchmarks.{benchmark.name} {words}'.strip()}`",
        f"- date: {time.strftime('%Y-%m-%d')}",
        f"- hardware: {machine.hardware()}",
        f"- versions: {', '.join(f'{name} {version}' for name, version in found.items())}",
        "",
        *(text for paragraph in benchmark.preface for text in (paragraph, "")),
        *_markdown(("figure", "value", "must be", "met"), figure_rows(line)),
        "",
        *_markdown(
            ("contest", "contestant", "quantity", "median", "smallest to largest", "runs"),
            summary_rows(benchmark, results),
        ),
        "",
        *(f"- {note}" for note in notes(results)),
    ]
    return "\n".join(parts).rstrip() + "\n"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]
