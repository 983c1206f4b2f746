"""How fast layouts are costed and a whole space is searched, on one core.

``python -m benchmarks.planner_speed [--json] [--runs 5] [--only FIGURE ...] [--quick]``

What one run does is in :mod:`benchmarks.planner_speed_runs`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.contestants import own_python
from benchmarks.figures import Benchmark, Column, Figure, Options, run_benchmark
from benchmarks.harness import Contest, Contestant, Results
from benchmarks.progress import Progress, Run, median, number

SPACE = "13B on 64 GPUs"
COSTING, SHUFFLED, SEARCH = "costing", "costing in random order", "search"
_WORDS = {COSTING: "costing", SHUFFLED: "shuffled", SEARCH: "search"}


def build(options: Options) -> Sequence[Contest]:
    """The three contestants, in turns."""
    return (Contest(name=SPACE, contestants=tuple(_contestant(name, options.quick) for name in _WORDS)),)


def _contestant(name: str, quick: bool) -> Contestant:
    def command(folder: Path, turn: int) -> list[str]:
        words = [str(own_python()), "-m", "benchmarks.planner_speed_runs"]
        words += ["--report", str(folder / "report.json"), "--what", _WORDS[name]]
        return [*words, "--quick"] if quick else words

    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return Contestant(name=name, command=command, read=_read, environment=one_thread, notes=_notes)


def _read(folder: Path) -> Progress:
    report = json.loads((folder / "report.json").read_text())
    return Progress(numbers={name: float(report[name]) for name in ("costed", "seconds", "layouts")})


def _notes(folder: Path) -> list[str]:
    report = json.loads((folder / "report.json").read_text())
    return [report["note"]] if "note" in report else []


def rate(run: Run) -> float:
    """Layouts costed in a second of one core."""
    return number(run, "costed") / number(run, "seconds")


def _median(contestant: str, value: Callable[[Run], float]) -> Callable[[Results], float]:
    return lambda results: median([value(run) for run in results.of(SPACE, contestant)])


def _seconds(run: Run) -> float:
    return number(run, "seconds")


def _layouts(run: Run) -> float:
    return number(run, "layouts")


FIGURES = (
    Figure(
        name="costed_per_second", contest=SPACE, contestants=(COSTING,), value=_median(COSTING, rate),
        goal=300_000, better="higher", unit="layouts",
        note="each costed in full (time, memory, energy, price), none pruned; processor time of one thread",
    ),
    Figure(
        name="costed_per_second_shuffled", contest=SPACE, contestants=(SHUFFLED,),
        value=_median(SHUFFLED, rate), goal=None, better="higher", unit="layouts",
        note="the same layouts in random order: neighbours share little",
    ),
    Figure(
        name="whole_space_seconds", contest=SPACE, contestants=(SEARCH,), value=_median(SEARCH, _seconds),
        goal=10, better="lower", unit="s", note="pruning by memory, Pareto front and rejected families included",
    ),
    Figure(
        name="whole_space_layouts", contest=SPACE, contestants=(SEARCH,), value=_median(SEARCH, _layouts),
        goal=1_300_000, better="higher", unit="layouts",
    ),
)  # fmt: skip

COLUMNS = (
    Column(contest=SPACE, title="processor time, s", of_run=_seconds, digits=3),
    Column(contest=SPACE, title="layouts in the space", of_run=_layouts, digits=0),
    Column(contest=SPACE, title="layouts costed", of_run=lambda run: number(run, "costed"), digits=0),
    Column(contest=SPACE, title="layouts costed a second", of_run=rate, digits=0),
)

PREFACE = (
    "**Job.** A transformer of 13B parameters (40 layers, hidden 5120, 40 heads, sequence 2048, vocabulary 51200), "
    "global batch 3072, on 8 nodes of 8 A100-80GB.",
    "**Space.** 1,526,313 layouts: tensor x data x pipeline on 1, 2, 4, 8, 16, 24, 32, 40, 48, 56 or 64 devices; "
    "every divisor of the data degree as fsdp degree at zero levels 0 to 3; every micro-batch that divides a "
    "replica's share; every interleaving that the schedule allows; none, selective and full recompute; with and "
    "without sequence parallelism; bsp, ssp, asp and local SGD; placements that differ. Of them 164,754 take all "
    "64 devices under bsp.",
    "**Costed** means predicted in full: time with its interval and phases, memory, energy and price. *Costing* "
    "prunes nothing, not even what does not fit, and counts making the layouts. Layouts that agree in what a term "
    "depends on share its computation within a chunk of 32,768; *random order* shows what is left where they "
    "share less. *Search* costs what fits the memory, and keeps the best 20, the front and the families.",
    "**Peer.** Calculon costs 54 layouts in full a second on one core, and did not finish its 1,380,160 layouts of "
    "this model in 200 s: measured on another day, and not run here. It models memory tiers and offloading, which "
    "this planner does not.",
    "Every run is a fresh process with one thread.",
)


def benchmark() -> Benchmark:
    """The theme."""
    return Benchmark(
        name="planner_speed",
        build=build,
        figures=FIGURES,
        columns=COLUMNS,
        preface=PREFACE,
        packages=("numpy",),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark with the words of the command line."""
    return run_benchmark(benchmark(), argv)


if __name__ == "__main__":
    sys.exit(main())
