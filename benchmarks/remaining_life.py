"""Remaining life of turbofan engines, and the chance that a part fails.

``LEPTON_DATA=... python -m benchmarks.remaining_life [--json] [--runs 5] [--only FIGURE ...] [--quick]``

No peer runs beside it: the goals are a LightGBM baseline's errors on the same files. Each run is another seed, and
figures are means over all seeds. What one run does is in :mod:`benchmarks.remaining_life_runs`.
"""

from __future__ import annotations

import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.contestants import own_python
from benchmarks.figures import Benchmark, Column, Figure, Options, run_benchmark
from benchmarks.harness import Contest, Contestant, Results
from benchmarks.progress import Progress, Run, number

ENGINES = ("FD001", "FD002", "FD004")
PARTS = "AI4I"
OURS = "leptonai"
RMSE_GOALS = {"FD001": 12.0, "FD002": 23.3, "FD004": 23.8}
LEAST_COVERAGE, MOST_COVERAGE = 0.88, 0.94


def build(options: Options) -> Sequence[Contest]:
    """One contest for each set of data; ours is alone in it."""
    return tuple(
        Contest(name=name, contestants=(_contestant(name, options.quick),)) for name in (*ENGINES, PARTS)
    )


def _contestant(which: str, quick: bool) -> Contestant:
    def command(folder: Path, turn: int) -> list[str]:
        words = [
            str(own_python()),
            "-m",
            "benchmarks.remaining_life_runs",
            "--set",
            which,
            "--seed",
            str(turn),
        ]
        words += ["--report", str(folder / "report.json")]
        return [*words, "--quick"] if quick else words

    return Contestant(name=OURS, command=command, read=_read, environment={"OMP_NUM_THREADS": "2"})


def _read(folder: Path) -> Progress:
    return Progress(numbers=json.loads((folder / "report.json").read_text()))


def _of(name: str) -> Callable[[Run], float]:
    return lambda run: number(run, name)


def mean_of(contest: str, name: str) -> Callable[[Results], float]:
    """The mean over seeds."""
    return lambda results: statistics.fmean(number(run, name) for run in results.of(contest, OURS))


def _figures() -> tuple[Figure, ...]:
    made = []
    for name in ENGINES:
        made += [
            _figure(f"{name.lower()}_rmse", name, "rmse", RMSE_GOALS[name], "lower", "cycles", "raw test lives"),
            _figure(f"{name.lower()}_coverage", name, "coverage", LEAST_COVERAGE, "higher", "share",
                    f"of the 90 % interval; at most {MOST_COVERAGE:g} is wanted too"),
            _figure(f"{name.lower()}_fit", name, "fit_seconds", 60, "lower", "s", "everything that is chosen included"),
        ]  # fmt: skip
    return (
        *made,
        _figure("ai4i_pr_auc", PARTS, "pr_auc", 0.85, "higher", "", "five folds"),
        _figure(
            "ai4i_calibration", PARTS, "calibration", 0.10, "lower", "", "rows with a chance of 0.05 or more"
        ),
        _figure(
            "ai4i_brier", PARTS, "brier_ratio", 0.5, "lower", "of base", "against telling everyone the mean"
        ),
    )


def _figure(name: str, contest: str, of: str, goal: float, better: str, unit: str, note: str) -> Figure:
    return Figure(
        name=name, contest=contest, contestants=(OURS,), value=mean_of(contest, of), goal=goal,
        better="higher" if better == "higher" else "lower", unit=unit, note=note,
    )  # fmt: skip


COLUMNS = (
    *(
        Column(contest=name, title=title, of_run=_of(of), digits=digits)
        for name in ENGINES
        for title, of, digits in (
            ("RMSE, raw", "rmse", 2), ("RMSE, lives cut at 125", "rmse_capped", 2), ("NASA's score", "nasa_score", 0),
            ("coverage", "coverage", 3), ("width of the interval", "width", 1), ("fit, s", "fit_seconds", 1),
            ("engines too new to judge", "not_enough", 0),
        )
    ),
    Column(contest=PARTS, title="area under precision-recall", of_run=_of("pr_auc"), digits=3),
    Column(contest=PARTS, title="calibration error", of_run=_of("calibration"), digits=3),
    Column(contest=PARTS, title="rows at 0.05 or more", of_run=_of("likely"), digits=0),
    Column(contest=PARTS, title="Brier, of the base rate's", of_run=_of("brier_ratio"), digits=3),
    Column(contest=PARTS, title="fit, s", of_run=_of("fit_seconds"), digits=1),
)  # fmt: skip

PREFACE = (
    "**Engines.** NASA's C-MAPSS: fitted on the training engines, asked once about the last cycle of each test "
    "engine. The goals are a little below a plain LightGBM baseline with a cap of 125 cycles (12.37, 23.69, 24.15 "
    "on one seed). Errors are against raw test lives; those against lives cut at 125, which many papers give "
    "alone, stand beside them. The cap, the blend and the interval are chosen on training engines left out.",
    "**Parts.** AI4I 2020, 10,000 made-up parts, 339 failed, by rules that its authors wrote down: five folds, "
    "dealt anew by each seed. Its columns are used as they are, and in pairs as for any table of few columns.",
)


def benchmark() -> Benchmark:
    """The theme."""
    return Benchmark(
        name="remaining_life", build=build, figures=_figures(), columns=COLUMNS, preface=PREFACE, num_runs=5
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark with the words of the command line."""
    return run_benchmark(benchmark(), argv)


if __name__ == "__main__":
    sys.exit(main())
