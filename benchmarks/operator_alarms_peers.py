"""The other detectors of ``operator_alarms``, each with the best settings and the best threshold on the data it is
judged by: how they score, and how a threshold makes alarms of scores.

All are causal: the score of a point uses that point and earlier ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from benchmarks.operator_alarms_series import Counts, Incident, Labelled, count

Floats = NDArray[np.float64]
Scorer = Callable[[Labelled], Floats]

EWMA_RATES = (0.0002, 0.0005, 0.001, 0.002, 0.005, 0.02, 0.1, 0.3)
WARM_UP_SAMPLES = 100
"""Before which no peer is held to a score: a false alarm there would be the benchmark's fault."""

SPECTRAL_WINDOWS = (64, 1440)
"""Sliding windows of Ren and others 2019, section 5.1, for hourly and for minutely data."""
AVERAGE_FILTER = 3
"""q in the paper: width of the mean filter of the log spectrum."""
SCORE_WINDOW = 21
"""z in the paper: saliency is compared with the mean of so many points before."""
NUM_ESTIMATED, GRADIENT_POINTS = 5, 5
"""kappa and m in the paper: points added after the window, from the mean gradient of the last m."""
CHUNK_WINDOWS = 2048
"""Windows transformed at once, for speed only."""

TREE_SHINGLES = (1, 8, 24)
"""Values of a point and of those before it that the trees are given."""
NUM_TREES = 25
"""Tan, Ting & Liu 2011, section 5; height and window are river's defaults for its 8 and 250."""

QUIETS = (1, 10, 50, 150, 288, 576, 1440)
"""An alarm goes on until the score has been below the threshold for so many samples; each peer gets its best."""
NUM_THRESHOLDS = 80
SMALLEST_SHARE = 1e-5
"""Of all points past the highest threshold tried."""


def ewma(rate: float) -> Scorer:
    """Distance from the exponentially weighted mean in its standard deviations."""

    def scores(series: Labelled) -> Floats:
        found = np.zeros(len(series.values))
        mean, variance = float(series.values[0]), 0.0
        for place, value in enumerate(series.values):
            away = float(value) - mean
            if variance > 0.0:
                found[place] = abs(away) / variance**0.5
            step = max(rate, 1.0 / (place + 1.0))
            mean += step * away
            variance = (1.0 - step) * (variance + step * away * away)
        return found

    return scores


def spectral_residual(window: int, *, from_last: bool = False) -> Scorer:
    """Spectral residual of Ren and others 2019, algorithm of section 3.2, for the last point of a sliding window.

    The points added after the window go on from the last point (``from_last``, as the paper has it) or from the one
    before (as its authors' program has it): from a last point that is odd they become odder still and hide it.
    """

    def scores(series: Labelled) -> Floats:
        values = series.values
        found = np.zeros(len(values))
        size = min(window, max(SCORE_WINDOW + 1, len(values) // 4))
        ends = np.arange(size, len(values) + 1)
        for chunk in np.array_split(ends, max(1, len(ends) // CHUNK_WINDOWS)):
            rows = values[chunk[:, None] - size + np.arange(size)[None, :]]
            found[chunk - 1] = _saliency_scores(rows, from_last)
        return found

    return scores


def _saliency_scores(rows: Floats, from_last: bool) -> Floats:
    size = rows.shape[1]
    known = rows if from_last else rows[:, :-1]
    steps_back = np.arange(1, GRADIENT_POINTS + 1)
    gradient = ((known[:, -1:] - known[:, -1 - steps_back]) / steps_back).mean(axis=1, keepdims=True)
    estimated = known[:, -GRADIENT_POINTS : -GRADIENT_POINTS + 1] + gradient * GRADIENT_POINTS
    spectrum = np.fft.fft(np.concatenate([rows, np.repeat(estimated, NUM_ESTIMATED, axis=1)], axis=1), axis=1)
    size_of = np.abs(spectrum)
    log = np.log(np.maximum(size_of, 1e-12))
    total = np.cumsum(np.pad(log, ((0, 0), (AVERAGE_FILTER, 0))), axis=1)
    mean = (total[:, AVERAGE_FILTER:] - total[:, :-AVERAGE_FILTER]) / AVERAGE_FILTER
    saliency = np.abs(np.fft.ifft(spectrum / np.maximum(size_of, 1e-12) * np.exp(log - mean), axis=1))
    usual = saliency[:, size - SCORE_WINDOW : size].mean(axis=1)
    return np.asarray((saliency[:, size - 1] - usual) / np.maximum(usual, 1e-12))


def half_space_trees(shingle: int) -> Scorer:
    """river's half-space trees behind its running min-max scaler, as its guide has it."""
    from river import anomaly, compose, preprocessing  # type: ignore[import-not-found,unused-ignore]

    def scores(series: Labelled) -> Floats:
        model = compose.Pipeline(
            preprocessing.MinMaxScaler(), anomaly.HalfSpaceTrees(n_trees=NUM_TREES, seed=1)
        )
        found = np.zeros(len(series.values))
        recent = [float(series.values[0])] * shingle
        for place, value in enumerate(series.values):
            recent = [*recent[1:], float(value)]
            row = dict(enumerate(recent))
            found[place] = model.score_one(row)
            model.learn_one(row)
        return found

    return scores


def scorers_of(name: str) -> dict[str, Scorer]:
    """The settings of one peer that are tried, by name."""
    if name == "ewma":
        return {f"rate {rate}": ewma(rate) for rate in EWMA_RATES}
    if name == "spectral":
        return {
            f"window {window}, points added from the {'last' if from_last else 'one before'}": spectral_residual(
                window, from_last=from_last
            )
            for window in SPECTRAL_WINDOWS
            for from_last in (False, True)
        }
    return {f"shingle {shingle}": half_space_trees(shingle) for shingle in TREE_SHINGLES}


@dataclass(frozen=True, slots=True, kw_only=True)
class Best:
    """The best that a peer reached on some data, and with what."""

    counts: Counts
    settings: str


def best(name: str, series: Sequence[Labelled]) -> Best:
    """Every setting, threshold and length of quiet tried on the very data that is measured; the greatest F1."""
    found: list[Best] = []
    for setting, scorer in scorers_of(name).items():
        scores = [_after_warm_up(scorer(each)) for each in series]
        for threshold in thresholds(scores):
            over = [np.flatnonzero(each >= threshold) for each in scores]
            for quiet in QUIETS:
                counts = total(
                    (_apart(places, quiet), each.incidents) for places, each in zip(over, series, strict=True)
                )
                text = f"{setting}, threshold {threshold:.4g}, an alarm lasts until {quiet} quiet samples"
                found.append(Best(counts=counts, settings=text))
    return max(found, key=lambda each: each.counts.f1)


def thresholds(scores: Sequence[Floats]) -> list[float]:
    """Candidates, evenly spread over the logarithm of the share of points past them."""
    everything = np.concatenate(scores)
    shares = np.logspace(np.log10(SMALLEST_SHARE), np.log10(0.2), NUM_THRESHOLDS)
    return sorted({float(each) for each in np.quantile(everything, 1.0 - shares)})


def total(alarms: Iterable[tuple[NDArray[np.int64], tuple[Incident, ...]]]) -> Counts:
    """The counts of many series together."""
    counts = Counts()
    for places, incidents in alarms:
        counts = counts.plus(count(places, incidents))
    return counts


def _after_warm_up(scores: Floats) -> Floats:
    scores = scores.copy()
    scores[:WARM_UP_SAMPLES] = -np.inf
    scores[np.isnan(scores)] = -np.inf
    return scores


def _apart(places: NDArray[np.int64], quiet: int) -> NDArray[np.int64]:
    """The first of each run of points over the threshold, runs being apart by more than ``quiet`` samples."""
    if not len(places):
        return places
    return np.asarray(places[np.concatenate([[True], np.diff(places) > quiet])])
