"""How well the streaming detector does on the Numenta Anomaly Benchmark, strictly causal, and what it costs.

``LEPTON_DATA=... python -m benchmarks.nab [--json] [--runs 1] [--only FIGURE ...] [--quick]``

What one run does is in :mod:`benchmarks.nab_runs`, NAB's rules in :mod:`benchmarks.nab_scoring`, the alarm layer that
they reward in :mod:`benchmarks.nab_alarms`.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.contestants import own_python
from benchmarks.figures import Benchmark, Better, Column, Figure, Options, run_benchmark
from benchmarks.harness import Contest, Contestant, Results
from benchmarks.progress import Progress, Run, Unmeasured, median, number

NAB, SCORER = "NAB 1.1", "our scorer"
DETECTOR, PUBLISHED = "StreamingDetector", "published scores"
_WORDS = {DETECTOR: "detector", PUBLISHED: "published"}

CATEGORIES = (
    "artificialNoAnomaly", "artificialWithAnomaly", "realAdExchange", "realTweets", "realAWSCloudwatch",
    "realKnownCause", "realTraffic",
)  # fmt: skip


def build(options: Options) -> Sequence[Contest]:
    """Our detector, and two published ones for the scorer."""
    return tuple(
        Contest(name=contest, contestants=(_contestant(name, options.quick),))
        for contest, name in ((NAB, DETECTOR), (SCORER, PUBLISHED))
    )


def _contestant(name: str, quick: bool) -> Contestant:
    def command(folder: Path, turn: int) -> list[str]:
        words = [str(own_python()), "-m", "benchmarks.nab_runs"]
        words += ["--report", str(folder / "report.json"), "--what", _WORDS[name]]
        return [*words, "--quick"] if quick else words

    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    data = {"LEPTON_DATA": os.environ.get("LEPTON_DATA", "")}
    return Contestant(
        name=name, command=command, read=_read, environment={**one_thread, **data}, notes=_NOTES[name]
    )


def _read(folder: Path) -> Progress:
    return Progress(numbers=json.loads((folder / "report.json").read_text()))


def _detector_notes(folder: Path) -> list[str]:
    told = json.loads((folder / "report.json").read_text())
    said = [
        f"{name}: {_said(told[f'{name} score'])} at the standard level, {told[f'{name} windows']:.0f} of "
        f"{told[f'{name} all windows']:.0f} windows, {told[f'{name} false points']:.0f} false points"
        for name in ("development", "held out", *CATEGORIES)
        if f"{name} score" in told
    ]
    for name in ("standard", "reward_low_FP_rate", "reward_low_FN_rate"):
        said.append(
            f"{name}: level {told[f'{name} level']:.2f}, {told[f'{name} windows']:.0f} windows, "
            f"{told[f'{name} false points']:.0f} false points; smoothed over 8 % of level "
            f"{told[f'{name} smoothed']:.2f}, worst near {told[f'{name} worst near']:.2f}, "
            f"leave-one-category-out {told[f'{name} without category']:.2f}"
        )
    said.append(
        "held-out categories at the level fitted on the development ones: "
        f"{_said(told['held out at the development level'])}"
    )
    said.append(
        f"{told['points']:.0f} points of {told['files']:.0f} files; no score looked ahead on any of them "
        "(cut and altered future); " + ("C kernel" if told["compiled"] else "NumPy, as there is no compiler")
    )
    return said


def _published_notes(folder: Path) -> list[str]:
    told = json.loads((folder / "report.json").read_text())
    return [
        f"{name}: our scorer differs from the published score by {value:.4f}" for name, value in told.items()
    ]


_NOTES = {DETECTOR: _detector_notes, PUBLISHED: _published_notes}


def _said(score: float) -> str:
    return "no window" if math.isnan(score) else f"{score:.2f}"


def _of(name: str) -> Callable[[Run], float]:
    def value(run: Run) -> float:
        found = number(run, name)
        if math.isnan(found):
            raise Unmeasured(f"{name} cannot be told of these files")
        return found

    return value


def _median(name: str) -> Callable[[Results], float]:
    return lambda results: median([_of(name)(run) for run in results.of(NAB, DETECTOR)])


def _greatest_deviation(results: Results) -> float:
    runs = results.of(SCORER, PUBLISHED)
    return max(max(run.progress.numbers.values()) for run in runs)


def _figure(name: str, number_name: str, goal: float, better: Better, unit: str, note: str = "") -> Figure:
    return Figure(
        name=name, contest=NAB, contestants=(DETECTOR,), value=_median(number_name), goal=goal, better=better,
        unit=unit, note=note,
    )  # fmt: skip


FIGURES = (
    _figure("standard_gate", "standard", 70, "higher", "points", "own optimum of the alarm level, as NAB does"),
    _figure("standard_aim", "standard", 74, "higher", "points", "the same number, against the aim"),
    _figure("low_false_positives_aim", "reward_low_FP_rate", 66, "higher", "points"),
    _figure("low_false_negatives_aim", "reward_low_FN_rate", 79, "higher", "points"),
    _figure(
        "leave_one_category_out", "standard without category", 69, "higher", "points",
        "alarms of each category at the level fitted on the six others",
    ),
    _figure("worst_at_level_x_0.96_and_1.04", "standard worst near", 69, "higher", "points"),
    _figure(
        "false_points_at_100_windows", "false points at 100 windows", 230, "lower", "points",
        "at the highest level that hits 100 of 116 windows",
    ),
    _figure("false_points_at_100_windows_aim", "false points at 100 windows", 180, "lower", "points"),
    _figure(
        "microseconds_a_point", "microseconds a point", 25, "lower", "us",
        "processor time of update(), point by point from Python",
    ),
    _figure("memory_bytes_a_series", "memory", 640_000, "lower", "bytes"),
    _figure("memory_bytes_a_series_aim", "memory", 128_000, "lower", "bytes"),
    Figure(
        name="scorer_deviation", contest=SCORER, contestants=(PUBLISHED,), value=_greatest_deviation, goal=0.05,
        better="lower", unit="points",
        note="greatest over three profiles of the detectors that could be run again: relativeEntropy, null",
    ),
)  # fmt: skip

COLUMNS = tuple(
    Column(contest=NAB, title=title, of_run=_of(name), digits=digits)
    for title, name, digits in (
        ("standard", "standard", 2),
        ("low false positives", "reward_low_FP_rate", 2),
        ("low false negatives", "reward_low_FN_rate", 2),
        ("standard, mean over 8 % of level", "standard smoothed", 2),
        ("leave one category out", "standard without category", 2),
        ("false points at 100 windows", "false points at 100 windows", 0),
        ("microseconds a point", "microseconds a point", 2),
    )
)

PREFACE = (
    "**Work.** Each of NAB's 58 files (365,558 points, 116 windows) is given to a fresh `StreamingDetector`, point by "
    "point, as value and time: no range, no length, no setting. One parameter set for all files and profiles; only "
    "the alarm level is fitted, per profile, as NAB fits it for every detector. The published best of each "
    "profile, 74.9 / 67.0 / 80.4, come from detectors that are handed each file's minimum and maximum beforehand "
    "(ARTime its length, too); CAD OSE, with 69.9 / 67.0 / 73.2, falls to 57.2 / 44.9 / 65.1 when it has to "
    "make do with the range of the first 15 %.",
    "**Causal.** On every file the scores of the first 60 % are compared, bit by bit, with those of the file cut "
    "there and with those of the file with another future; a difference fails the run.",
    "**Two layers.** The detector's score is a calibrated p-value. Alarms are made here, by a layer that suits NAB's "
    "windows: confirmation by one of the last six points, fatigue with the number of past peaks, and silence for "
    "100 points unless the next is 2.5 times stronger. That layer is not what an operator gets.",
    "**Split.** Channels, calibration and alarm constants were chosen on the artificial, tweet and ad-exchange files "
    "(27 files, 53 windows) and made-up noise; realAWSCloudwatch, realKnownCause and realTraffic (31 files, 63 "
    "windows) were scored when all that stood, and nothing was changed after. The design as such "
    "descends from trials that others made on all 58 files, so the held-out part is not pristine. Bootstrapped over "
    "files, the standard score is uncertain by about 3 points.",
    "**Scorer.** Written from the rules, it gives the silent detector 0 and reproduces the published relative-entropy "
    "scores of all three profiles from a detector written again from its definition. A windowed Gaussian written "
    "again came within 0.1 to 2 points, as its published threshold of 1.0 hangs on rounding, and is left out; the "
    "other published detectors need libraries or raw outputs that are not here.",
)


def benchmark() -> Benchmark:
    """The theme."""
    return Benchmark(
        name="nab",
        build=build,
        figures=FIGURES,
        columns=COLUMNS,
        preface=PREFACE,
        packages=("numpy",),
        num_runs=1,
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark with the words of the command line."""
    return run_benchmark(benchmark(), argv)


if __name__ == "__main__":
    sys.exit(main())
