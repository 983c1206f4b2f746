"""One run of ``nab``: score every file, check that no score looks ahead, and fit the alarm level.

``LEPTON_DATA=... python -m benchmarks.nab_runs --report FILE --what detector|published [--quick]``
"""

from __future__ import annotations

import argparse
import json
import math
import time
import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.nab_alarms import LEVELS, alarms, weighed
from benchmarks.nab_published import deviations
from benchmarks.nab_scoring import Labelled, Profile, Total, folder, load, profiles, total
from leptonai.operations.detect.streaming import StreamingDetector

Floats = NDArray[np.float64]

DEVELOPMENT = ("artificialNoAnomaly", "artificialWithAnomaly", "realTweets", "realAdExchange")
"""Categories on which channels, calibration and alarm constants were chosen; the others were looked at last."""
STANDARD, LOW_FALSE, LOW_MISSED = "standard", "reward_low_FP_rate", "reward_low_FN_rate"
LEVEL_FACTORS = (0.96, 1.04)
ENOUGH_SHARE = 100 / 116
"""Of the windows: false alarms are counted at the highest level that hits so many."""
CUT_SHARE = 0.6
"""Where a file is cut, and from where its future is altered, to see that scores before do not change."""
QUICK_CATEGORIES = ("artificialWithAnomaly", "realTraffic")
NUM_MEASURED = 50
"""Detectors alive at once when memory is measured."""

Alarms = Mapping[float, NDArray[np.int64]]


def strengths(file: Labelled) -> tuple[Floats, float]:
    """The strength of evidence at each point, point by point, and the seconds of processor time that it took."""
    detector, values, times = StreamingDetector(), file.values.tolist(), file.seconds.tolist()
    started = time.process_time()
    scores = [detector.update(value, at_seconds=at) for value, at in zip(values, times, strict=True)]
    seconds = time.process_time() - started
    return np.array([score.strength for score in scores]), seconds


def assert_causal(file: Labelled, found: Floats) -> None:
    """That scores before a cut are the same, to the bit, when the file ends there or goes on differently."""
    cut = int(CUT_SHARE * len(file.values))
    other = file.values.copy()
    other[cut:] = file.values[cut:][::-1] * 3.0 + np.ptp(file.values) + 1.0
    for values in (file.values[:cut], other):
        p_values = StreamingDetector().update_many(values, at_seconds=file.seconds[: len(values)])[:cut]
        known = np.isfinite(p_values)
        again = np.zeros(cut)
        again[known] = [-math.log10(p) for p in p_values[known]]
        assert np.array_equal(again, found[:cut]), f"{file.name}: a score depends on later points"


def at_level(files: Sequence[Labelled], fired: Sequence[Alarms], level: float, profile: Profile) -> Total:
    """The total of all files at one level."""
    return total(files, [each[level] for each in fired], profile)


def fitted(files: Sequence[Labelled], fired: Sequence[Alarms], profile: Profile) -> float:
    """The level that scores most, among :data:`LEVELS`."""
    levels: list[float] = LEVELS.tolist()
    return max(levels, key=lambda level: at_level(files, fired, level, profile).score)


def without_category(files: Sequence[Labelled], fired: Sequence[Alarms], profile: Profile) -> float:
    """The score when the alarms of each category come from the level fitted on all the others."""
    chosen: list[NDArray[np.int64]] = []
    levels = dict[str, float]()
    for file, each in zip(files, fired, strict=True):
        if file.category not in levels:
            kept = [i for i, other in enumerate(files) if other.category != file.category]
            levels[file.category] = fitted([files[i] for i in kept], [fired[i] for i in kept], profile)
        chosen.append(each[levels[file.category]])
    return total(files, chosen, profile).score


def judged(
    files: Sequence[Labelled], found: Sequence[Floats], costs: Mapping[str, Profile]
) -> dict[str, float]:
    """All figures that need labels."""
    heard = [weighed(each) for each in found]
    fired = [{level: alarms(each, level) for level in LEVELS.tolist()} for each in heard]
    numbers: dict[str, float] = {}
    for name, profile in costs.items():
        level = fitted(files, fired, profile)
        best = at_level(files, fired, level, profile)
        near = [total(files, [alarms(each, level * by) for each in heard], profile) for by in LEVEL_FACTORS]
        numbers |= {
            name: best.score, f"{name} level": level, f"{name} windows": best.num_hit,
            f"{name} false points": best.num_false, f"{name} worst near": min(each.score for each in near),
            f"{name} without category": without_category(files, fired, profile),
            f"{name} smoothed": smoothed(files, fired, profile),
        }  # fmt: skip
    level = numbers[f"{STANDARD} level"]
    parts = {"development": DEVELOPMENT, "held out": held_out(files)}
    parts |= {category: (category,) for category in sorted({file.category for file in files})}
    for part, categories in parts.items():
        kept = [i for i, file in enumerate(files) if file.category in categories]
        own = [files[i] for i in kept]
        scored = at_level(own, [fired[i] for i in kept], level, costs[STANDARD])
        numbers |= {f"{part} score": scored.score, f"{part} windows": scored.num_hit}
        numbers |= {f"{part} all windows": scored.num_windows, f"{part} false points": scored.num_false}
    kept = [i for i, file in enumerate(files) if file.category in DEVELOPMENT]
    level = fitted([files[i] for i in kept], [fired[i] for i in kept], costs[STANDARD])
    kept = [i for i, file in enumerate(files) if file.category not in DEVELOPMENT]
    scored = at_level([files[i] for i in kept], [fired[i] for i in kept], level, costs[STANDARD])
    numbers["held out at the development level"] = scored.score
    numbers["false points at 100 windows"] = false_points(files, fired, costs[STANDARD])
    return numbers


def held_out(files: Sequence[Labelled]) -> tuple[str, ...]:
    """The categories that nothing was chosen on."""
    return tuple(sorted({file.category for file in files} - set(DEVELOPMENT)))


def smoothed(files: Sequence[Labelled], fired: Sequence[Alarms], profile: Profile) -> float:
    """The best mean score over five neighbouring levels (8 % from first to last): not one lucky peak."""
    scores = [at_level(files, fired, level, profile).score for level in LEVELS.tolist()]
    return float(np.convolve(scores, np.full(5, 0.2), "valid").max())


def false_points(files: Sequence[Labelled], fired: Sequence[Alarms], profile: Profile) -> float:
    """False alarms at the highest level that hits 100 of 116 windows, or that share; NaN: none does."""
    for level in LEVELS[::-1].tolist():
        found = at_level(files, fired, level, profile)
        if found.num_hit >= ENOUGH_SHARE * found.num_windows:
            return float(found.num_false)
    return math.nan


def memory_bytes(file: Labelled) -> float:
    """Of one live detector that has seen a file, all its objects counted."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    alive = [StreamingDetector() for _ in range(NUM_MEASURED)]
    for detector in alive:
        detector.update_many(file.values, at_seconds=file.seconds)
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    return used / len(alive)


def detector_report(*, quick: bool) -> dict[str, float]:
    """The numbers of our detector."""
    place = folder()
    files = load(place)
    if quick:
        files = [file for file in files if file.category in QUICK_CATEGORIES]
    found, seconds = list[Floats](), 0.0
    for file in files:
        one, took = strengths(file)
        assert_causal(file, one)
        found.append(one)
        seconds += took
    num_points = sum(len(file.values) for file in files)
    numbers = judged(files, found, profiles(place))
    return {
        **numbers, "microseconds a point": 1e6 * seconds / num_points, "memory": memory_bytes(files[0]),
        "compiled": float(StreamingDetector().is_compiled), "files": float(len(files)), "points": float(num_points),
    }  # fmt: skip


def main() -> None:
    """Do one run and write its report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--what", choices=("detector", "published"), required=True)
    parser.add_argument("--quick", action="store_true")
    words = parser.parse_args()
    if words.what == "detector":
        numbers = detector_report(quick=words.quick)
    else:
        place = folder()
        numbers = deviations(place, load(place), profiles(place))
    words.report.write_text(json.dumps(numbers))


if __name__ == "__main__":
    main()
