"""The watch of a run held to slow ranks, loss spikes, stopped ranks and a faulty machine among a thousand.

``LEPTON_DATA=... python -m benchmarks.training_watch [--json] [--runs 1] [--only FIGURE ...] [--quick]``

What one run does is in :mod:`benchmarks.training_watch_runs` and the modules that it names.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.contestants import own_python
from benchmarks.figures import Benchmark, Better, Column, Figure, Options, run_benchmark
from benchmarks.harness import ROOT, Contest, Contestant, Results
from benchmarks.progress import Progress, Run, median, number

OURS = "leptonai"
STRAGGLERS, SPIKES, STOPS, MACHINES = "slow ranks", "loss spikes", "stopped ranks", "faulty machine"
_WHAT = {STRAGGLERS: "stragglers", SPIKES: "spikes", STOPS: "stops", MACHINES: "machines"}


def build(options: Options) -> Sequence[Contest]:
    """One contest for each kind of trouble; nobody else does the same work on the same traces."""
    return tuple(
        Contest(name=name, contestants=(_contestant(what, options.quick),)) for name, what in _WHAT.items()
    )


def _contestant(what: str, quick: bool) -> Contestant:
    def command(folder: Path, turn: int) -> list[str]:
        words = [str(own_python()), "-m", "benchmarks.training_watch_runs", "--what", what]
        words += ["--report", str(folder / "report.json")]
        return [*words, "--quick"] if quick else words

    return Contestant(
        name=OURS,
        command=command,
        read=lambda folder: Progress(numbers=json.loads((folder / "report.json").read_text())),
        environment={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        directory=lambda folder: ROOT,
    )


def _number(name: str) -> Callable[[Run], float]:
    return lambda run: number(run, name)


def _figure(contest: str, name: str, goal: float | None, better: Better, unit: str, note: str = "") -> Figure:
    def value(results: Results) -> float:
        return median([number(run, name) for run in results.of(contest, OURS)])

    return Figure(
        name=name,
        contest=contest,
        contestants=(OURS,),
        value=value,
        goal=goal,
        better=better,
        unit=unit,
        note=note,
    )


FIGURES = (
    _figure(
        STRAGGLERS, "stragglers_named", 0.99, "higher", "share", "of 500 slowed by 10 %, within 20 steps"
    ),
    _figure(STRAGGLERS, "straggler_false", 0, "lower", "flags", "in 10,000 clean steps"),
    _figure(SPIKES, "spikes_found", 0.98, "higher", "share", "of 200, within 50 steps"),
    _figure(SPIKES, "spikes_false", 1, "lower", "alarms", "in 100,000 clean steps"),
    _figure(STOPS, "stops_named", 20, "higher", "of 20", "after at most max(5 s, 3 x p99 step)"),
    _figure(MACHINES, "machine_precision", 0.95, "higher", "share"),
    _figure(MACHINES, "machine_f1", 0.92, "higher", "F1"),
    _figure(MACHINES, "machine_seconds", 1, "lower", "s", "one window of 1,000 machines, one core"),
)
COLUMNS = (
    Column(
        contest=STRAGGLERS, title="named, by processor time", of_run=_number("stragglers_named"), digits=3
    ),
    Column(
        contest=STRAGGLERS,
        title="named, by the wall clock",
        of_run=_number("stragglers_named_wall"),
        digits=3,
    ),
    Column(contest=SPIKES, title="spikes", of_run=_number("spikes"), digits=0),
    Column(contest=SPIKES, title="found", of_run=_number("spikes_found"), digits=3),
    Column(contest=SPIKES, title="clean steps", of_run=_number("clean_steps"), digits=0),
    Column(contest=STOPS, title="median s", of_run=_number("stop_seconds_median"), digits=2),
    Column(contest=STOPS, title="worst s", of_run=_number("stop_seconds_worst"), digits=2),
    Column(contest=MACHINES, title="precision", of_run=_number("machine_precision"), digits=3),
    Column(contest=MACHINES, title="recall", of_run=_number("machine_recall"), digits=3),
    Column(contest=MACHINES, title="seconds a window", of_run=_number("machine_seconds"), digits=3),
)
PREFACE = (
    "**Slow ranks.** Step times of eight real processes were recorded once, on a machine of two cores "
    "that was busy with other work; at each step one of them computes at a time. A seeded script "
    "lengthens one rank's computing by 10 % from a step on, after 300 clean ones. The figure is of the "
    "processor time of the rank, as a device's timer tells it; the wall clock also counts what other "
    "processes took.",
    "**Loss spikes.** Curves are trained here (networks on MNIST, a language model on tinyshakespeare, "
    "three optimisers, seeds 11 and 12; development had 1 and 2). A spike's peak is the larger of 5 to 20 "
    "deviations of the hundred losses before it and 0.3 to 3 times their mean; it decays over 5 to 50 "
    "steps, or lasts. None is in the first 300 steps.",
    "**Stopped ranks.** One of the two workers of a real run gets SIGSTOP, twenty times in turn; the run "
    "replaces it and goes on. Time is from the signal to the alarm in the run's journal.",
    "**Faulty machine.** 1,000 simulated machines, ten signals, sixty steps, 90 windows, a third of them "
    "without a fault; what is simulated, and how, is in `training_watch_machines.py`. A window is right "
    "only if the faulty machine is named; every other name counts against precision.",
)


def benchmark() -> Benchmark:
    """The theme."""
    return Benchmark(
        name="training_watch", build=build, figures=FIGURES, columns=COLUMNS, preface=PREFACE, num_runs=1
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark with the words of the command line."""
    return run_benchmark(benchmark(), argv)


if __name__ == "__main__":
    sys.exit(main())
