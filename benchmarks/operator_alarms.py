"""The alarms an operator gets by default, on NAB's label timestamps and on injected incidents.

``LEPTON_DATA=... python -m benchmarks.operator_alarms [--json] [--runs 1] [--only FIGURE ...] [--quick]``

What one run does is in :mod:`benchmarks.operator_alarms_runs`, the other detectors are in
:mod:`benchmarks.operator_alarms_peers`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.contestants import own_python
from benchmarks.figures import Benchmark, Column, Figure, Options, run_benchmark
from benchmarks.harness import ROOT, Contest, Contestant, Results
from benchmarks.peers.environment import peers_python, pinned_versions
from benchmarks.progress import Progress, Run, median, number

NAB, INJECTED = "NAB label timestamps", "injected incidents"
_DATA = {NAB: "nab", INJECTED: "injected"}
OURS = "ours, by default"
PEERS = {
    "EWMA z-score": "ewma",
    "spectral residual": "spectral",
    "half-space trees": "trees",
}
_NUMBERS = ("f1", "f1_repeats_false", "found", "missed", "false", "repeats", "seconds", "points")


def build(options: Options) -> Sequence[Contest]:
    """Every contestant on both kinds of data."""
    return tuple(
        Contest(
            name=contest,
            contestants=tuple(
                _contestant(name, who, data, options.quick) for name, who in {OURS: "ours", **PEERS}.items()
            ),
        )
        for contest, data in _DATA.items()
    )


def _contestant(name: str, who: str, data: str, quick: bool) -> Contestant:
    def command(folder: Path, turn: int) -> list[str]:
        python = own_python() if who == "ours" else peers_python()
        words = [str(python), "-m", "benchmarks.operator_alarms_runs", "--who", who, "--data", data]
        words += ["--report", str(folder / "report.json")]
        return [*words, "--quick"] if quick else words

    return Contestant(
        name=name,
        command=command,
        read=_read,
        environment={"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        directory=lambda folder: ROOT,
        notes=lambda folder: [json.loads((folder / "report.json").read_text())["note"]],
    )


def _read(folder: Path) -> Progress:
    report = json.loads((folder / "report.json").read_text())
    return Progress(numbers={name: float(report[name]) for name in _NUMBERS})


def _number(name: str) -> Callable[[Run], float]:
    return lambda run: number(run, name)


def _f1(contest: str, contestant: str, results: Results, name: str = "f1") -> float:
    return median([number(run, name) for run in results.of(contest, contestant)])


def _margin(contest: str) -> Callable[[Results], float]:
    """Our F1 less the best of the others'."""
    return lambda results: _f1(contest, OURS, results) - max(_f1(contest, each, results) for each in PEERS)


def _ours(contest: str, name: str = "f1") -> Callable[[Results], float]:
    return lambda results: _f1(contest, OURS, results, name)


ABOVE = 1e-4
"""The goal is to be above the best of the others; figures are written with four digits."""
ALL = (OURS, *PEERS)
FIGURES = (
    Figure(
        name="nab_margin", contest=NAB, contestants=ALL, value=_margin(NAB), goal=ABOVE, better="higher",
        unit="F1", note="our event F1 less the best of the others', theirs at the best threshold on these files",
    ),
    Figure(
        name="injected_margin", contest=INJECTED, contestants=ALL, value=_margin(INJECTED), goal=ABOVE,
        better="higher", unit="F1", note="the same on injected incidents",
    ),
    Figure(name="nab_f1", contest=NAB, contestants=(OURS,), value=_ours(NAB), goal=None, better="higher",
           unit="F1"),
    Figure(name="injected_f1", contest=INJECTED, contestants=(OURS,), value=_ours(INJECTED), goal=None,
           better="higher", unit="F1"),
)  # fmt: skip

COLUMNS = tuple(
    Column(contest=contest, title=title, of_run=of_run, digits=digits)
    for contest in _DATA
    for title, of_run, digits in (
        ("event F1", _number("f1"), 4),
        ("event F1 if repeats within an incident are false", _number("f1_repeats_false"), 4),
        ("incidents found", _number("found"), 0),
        ("incidents missed", _number("missed"), 0),
        ("false alarms", _number("false"), 0),
        ("repeats within an incident", _number("repeats"), 0),
    )
)

PREFACE = (
    "**What counts.** A hit is an alarm from an incident's onset to its end + 10 samples, counted once; every alarm "
    "outside is false. On NAB's 58 files an incident is one label timestamp, not its window, so an alarm that comes "
    "before the timestamp is false: whoever labelled them often put it past the onset, and no detector scores well.",
    "**Injected.** 70 seeded series of three weeks at one sample in five minutes (a service's load, latency, "
    "rates of a counter with resets, temperature, queue, saw-toothed memory, heavy-tailed noise) with up to three "
    "incidents each (level shift, spike, variance, season lost, slow drift, flat line, shape), the first ten days "
    "healthy. Some incidents cannot be seen: a reversed course of white noise, for one.",
    "**Ours** runs with every default, the same on all data. The policy's defaults (when to call) were settled on "
    "generated series of other seeds (1 to 70) of the same generator, and on no file of NAB. The detector beneath "
    "(what is odd) is not blind to NAB: the choice of its channels goes back to trials on those files.",
    "**The others** are scores with a threshold, as they are used; ours adds a policy of its own, which sums up what "
    "lasts. Each gets the best of its settings (EWMA: eight rates from 0.0002 to 0.3; spectral residual: window 64 or "
    "1440, points added as in the paper or as in its authors' program; half-space trees of river: on the value "
    "alone, the last 8 or the last 24), of 80 thresholds and of seven lengths of quiet after which an alarm ends, "
    "chosen on the very data they are judged by. None of them is scored in the first 100 samples.",
    "All are causal: the score of a point uses that point and earlier ones.",
)


def benchmark() -> Benchmark:
    """The theme."""
    pinned = pinned_versions()
    return Benchmark(
        name="operator_alarms",
        build=build,
        figures=FIGURES,
        columns=COLUMNS,
        preface=PREFACE,
        packages=("numpy",),
        peer_versions={name: pinned[name] for name in ("river",) if name in pinned},
        num_runs=1,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark with the words of the command line."""
    return run_benchmark(benchmark(), argv)


if __name__ == "__main__":
    sys.exit(main())
