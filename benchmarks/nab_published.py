"""A detector of NAB's own score board, written again, to compare our scorer with its published scores.

Relative entropy is deterministic, says 0 or 1, and is given each file's range: it is here to be scored, not to be used.
Its thresholds and scores, and those of the detector that never speaks, are NAB's. The windowed Gaussian is not here:
its published threshold is 1.0, so its score hangs on which tails round to 1, and a rebuilt one comes no nearer than
0.1 to 2 points. All others need libraries, random numbers or raw outputs that are not published with the scores.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.nab_scoring import Labelled, Profile, best_threshold, total

Floats = NDArray[np.float64]

ENTROPY_BINS, ENTROPY_WINDOW = 5, 52
ENTROPY_LIMIT = 13.276704135987624
"""99 % point of the chi-squared distribution with four degrees of freedom."""


def relative_entropy(values: Floats) -> Floats:
    """1 where the histogram of the last 52 values agrees with none seen before (Wang and others 2011, figure 1)."""
    scores, width = np.zeros(len(values)), float(values.max() - values.min()) / ENTROPY_BINS
    if width == 0.0:
        return scores
    bins = np.ceil((values - values.min()) / width)
    known = np.zeros((0, ENTROPY_BINS))
    seen = list[int]()
    for i in range(ENTROPY_WINDOW - 1, len(values)):
        window = bins[i + 1 - ENTROPY_WINDOW : i + 1]
        counts = np.histogram(window, bins=ENTROPY_BINS, range=(0, ENTROPY_BINS))[0] / ENTROPY_WINDOW
        agreeing = _nearest(counts, known)
        if agreeing >= 0:
            seen[agreeing] += 1
            scores[i] = float(seen[agreeing] <= 1)
            continue
        scores[i] = float(len(seen) > 0)
        known, seen = np.vstack([known, counts]), [*seen, 1]
    return scores


def _nearest(counts: Floats, known: Floats) -> int:
    """Which known histogram has the least relative entropy below the limit; -1: none."""
    if not len(known):
        return -1
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = np.where(counts > 0.0, counts * np.log(counts / known), 0.0)
    statistic = 2.0 * ENTROPY_WINDOW * terms.sum(axis=1)
    best = int(statistic.argmin())
    return best if statistic[best] < ENTROPY_LIMIT else -1


DETECTORS: Mapping[str, Callable[[Floats], Floats]] = {
    "relativeEntropy": relative_entropy,
}


def deviations(place: Path, files: Sequence[Labelled], profiles: Mapping[str, Profile]) -> dict[str, float]:
    """By detector and profile, how far our score is from the published one; the silent detector among them."""
    published = json.loads((place / "results/final_results.json").read_text())
    thresholds = json.loads((place / "config/thresholds.json").read_text())
    found: dict[str, float] = {}
    for name, detector in DETECTORS.items():
        scores = [detector(file.values) for file in files]
        for profile_name, profile in profiles.items():
            threshold = thresholds[name][profile_name]["threshold"]
            best = best_threshold(files, scores, profile, [threshold])[1].score
            found[f"{name} {profile_name}"] = abs(best - published[name][profile_name])
    none = [np.zeros(0, np.int64)] * len(files)
    for profile_name, profile in profiles.items():
        found[f"null {profile_name}"] = abs(
            total(files, none, profile).score - published["null"][profile_name]
        )
    return found
