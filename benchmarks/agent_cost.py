"""What the node agent costs: its share of one core and its memory at one sample a second of 300 series.

``python -m benchmarks.agent_cost [--json] [--runs 3] [--only FIGURE ...] [--quick]``

What one run does is in :mod:`benchmarks.agent_cost_runs`.
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

WORK = "one sample a second of 300 series"
AGENT = "agent"
_NUMBERS = (
    "core_share", "highest_core_share", "peak_mb", "start_cpu_seconds", "arrived_ratio", "series_each_second",
    "bytes_per_sample",
)  # fmt: skip


def build(options: Options) -> Sequence[Contest]:
    """The agent alone."""

    def command(folder: Path, turn: int) -> list[str]:
        words = [
            str(own_python()),
            "-m",
            "benchmarks.agent_cost_runs",
            "--report",
            str(folder / "report.json"),
        ]
        return [*words, "--quick"] if options.quick else words

    agent = Contestant(name=AGENT, command=command, read=_read, notes=_notes)
    return (Contest(name=WORK, contestants=(agent,)),)


def _read(folder: Path) -> Progress:
    report = json.loads((folder / "report.json").read_text())
    return Progress(numbers={name: float(report[name]) for name in _NUMBERS})


def _notes(folder: Path) -> list[str]:
    return list(json.loads((folder / "report.json").read_text())["notes"])


def _of(name: str) -> Callable[[Run], float]:
    return lambda run: number(run, name)


def _median(name: str) -> Callable[[Results], float]:
    return lambda results: median([number(run, name) for run in results.of(WORK, AGENT)])


def _worst(name: str, worst: Callable[[list[float]], float]) -> Callable[[Results], float]:
    return lambda results: worst([number(run, name) for run in results.of(WORK, AGENT)])


FIGURES = (
    Figure(
        name="core_share", contest=WORK, contestants=(AGENT,), value=_median("core_share"), goal=0.01,
        better="lower", unit="of a core", note="median window of each run, median of the runs; all threads",
    ),
    Figure(
        name="peak_memory_mb", contest=WORK, contestants=(AGENT,), value=_worst("peak_mb", max), goal=60,
        better="lower", unit="MB", note="the largest resident memory there ever was (VmHWM), worst run; 10^6 bytes",
    ),
    Figure(
        name="arrived_ratio", contest=WORK, contestants=(AGENT,), value=_worst("arrived_ratio", min), goal=0.99,
        better="higher", note="of the samples that were due in the measured time, those the collector has; worst run",
    ),
)  # fmt: skip

COLUMNS = (
    Column(contest=WORK, title="share of a core, median window, %", of_run=lambda run: 100 * number(run, "core_share"),
           digits=2),
    Column(contest=WORK, title="share of a core, highest window, %",
           of_run=lambda run: 100 * number(run, "highest_core_share"), digits=2),
    Column(contest=WORK, title="peak resident memory, MB", of_run=_of("peak_mb")),
    Column(contest=WORK, title="processor time to start, s", of_run=_of("start_cpu_seconds"), digits=2),
    Column(contest=WORK, title="series sampled each second", of_run=_of("series_each_second"), digits=0),
    Column(contest=WORK, title="bytes sent a sample, packed", of_run=_of("bytes_per_sample"), digits=2),
)  # fmt: skip

PREFACE = (
    "**Work.** The agent's own process reads every source this machine has; gauges of a run are added until 300 series "
    "are read each second. Its own series (about 30) and those of sources that are read less often come on top. It "
    "packs and spools them to disk and sends them to a collector, a second process with the ingest server and store "
    "of this project, over HTTP on loopback, with a token.",
    "**Share of a core** is the processor time of the agent's process, all its threads, over wall time, in windows "
    "of 15 s after a warm-up of 10 s: in `core_share` the median window, beside it the highest. Start-up is told "
    "by itself.",
    "**Memory** is VmHWM: the largest resident memory from start to end, shared libraries included.",
    "**Not in it:** accelerators, SMART and hardware sensors, where this machine has none; the notes name the sources "
    "that were read.",
)


def benchmark() -> Benchmark:
    """The theme."""
    return Benchmark(
        name="agent_cost", build=build, figures=FIGURES, columns=COLUMNS, preface=PREFACE, packages=("cramjam",),
        num_runs=3,
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark with the words of the command line."""
    return run_benchmark(benchmark(), argv)


if __name__ == "__main__":
    sys.exit(main())
