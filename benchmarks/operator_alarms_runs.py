"""One contestant of ``operator_alarms`` on one kind of data.

``python -m benchmarks.operator_alarms_runs --report FILE --who ours|ewma|spectral|trees --data nab|injected
[--quick]``
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.operator_alarms_peers import best, total
from benchmarks.operator_alarms_series import Counts, Labelled, nab_series
from benchmarks.operator_alarms_synthetic import injected_series

QUICK_SERIES = 4


def our_alarms(series: Labelled) -> NDArray[np.int64]:
    """Where our detector and policy call a person, with every default."""
    from leptonai.operations.detect.policy import AlarmWatch
    from leptonai.operations.detect.streaming import StreamingDetector

    detector, watch = StreamingDetector(), AlarmWatch()
    places = []
    for place, (at_seconds, value) in enumerate(zip(series.at_seconds, series.values, strict=True)):
        score = detector.update(float(value), at_seconds=float(at_seconds))
        if watch.update(score, at_seconds=float(at_seconds)).calls:
            places.append(place)
    return np.array(places, dtype=np.int64)


def measured(who: str, series: list[Labelled]) -> tuple[Counts, str]:
    """The counts of one contestant, and with which settings."""
    if who == "ours":
        return total((our_alarms(each), each.incidents) for each in series), "every default"
    found = best(who, series)
    return found.counts, found.settings


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--who", choices=("ours", "ewma", "spectral", "trees"), required=True)
    parser.add_argument("--data", choices=("nab", "injected"), required=True)
    parser.add_argument("--quick", action="store_true")
    words = parser.parse_args()
    series = list(nab_series() if words.data == "nab" else injected_series())
    if words.quick:
        series = series[:: len(series) // QUICK_SERIES][:QUICK_SERIES]
    began = time.perf_counter()
    counts, settings = measured(words.who, series)
    seconds = time.perf_counter() - began
    report = {
        "f1": counts.f1, "f1_repeats_false": counts.f1_repeats_false, "found": counts.found,
        "missed": counts.missed, "false": counts.false, "repeats": counts.repeats, "seconds": seconds,
        "points": sum(len(each.values) for each in series), "note": f"{words.data}: {settings}",
    }  # fmt: skip
    words.report.write_text(json.dumps(report))


if __name__ == "__main__":
    main()
