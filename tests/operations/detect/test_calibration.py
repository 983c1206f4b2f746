"""P-values mean what they say on stationary series: how often they fall below a limit, on seeds of their own."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from leptonai.operations.detect.calibration import TABLE, p_value
from leptonai.operations.detect.streaming import MIN_HISTORY_POINTS, StreamingDetector
from leptonai.operations.detect.streaming_kernel import library

Floats = NDArray[np.floating[Any]]
LIMIT = 0.001
FACTOR = 4.0
"""Of the limit, either way: what the docstring says, with room for the chance of 120,000 correlated points."""
NUM_SERIES, NUM_POINTS = 10, 12_000


def autoregressive(rng: np.random.Generator, num: int, coefficient: float) -> Floats:
    noise, found = rng.normal(size=num), np.empty(num)
    last = 0.0
    for i in range(num):
        last = coefficient * last + noise[i]
        found[i] = last
    return found


def series(kind: str, seed: int, num: int) -> tuple[Floats, Floats]:
    rng = np.random.default_rng([seed, 91])
    seconds = 1.6e9 + (60.0, 300.0)[seed % 2] * np.arange(num)
    season = np.sin(seconds / 86400.0 * 2.0 * math.pi)
    match kind:
        case "white":
            return rng.normal(size=num), seconds
        case "autoregressive":
            return autoregressive(rng, num, 0.8), seconds
        case "seasonal":
            return 4.0 * season + rng.normal(size=num), seconds
        case "counts":
            return rng.poisson(4.0 * np.exp(0.7 * season)).astype(np.float64), seconds
        case _:
            return np.exp(rng.normal(size=num)), seconds


@pytest.mark.skipif(
    library() is None, reason="no C compiler here: the reference is too slow for so many points"
)
@pytest.mark.parametrize("kind", ["white", "autoregressive", "seasonal", "counts", "lognormal"])
def test_small_p_values_are_as_rare_as_they_say(kind: str) -> None:
    found = []
    for seed in range(NUM_SERIES):
        values, seconds = series(kind, seed, NUM_POINTS)
        found.append(StreamingDetector().update_many(values, at_seconds=seconds)[MIN_HISTORY_POINTS:])
    share = float(np.mean(np.concatenate(found) <= LIMIT))
    assert LIMIT / FACTOR <= share <= LIMIT * FACTOR, f"{kind}: {share}"


@pytest.mark.skipif(
    library() is None, reason="no C compiler here: the reference is too slow for so many points"
)
def test_a_young_detector_does_not_cry_wolf() -> None:
    found = []
    for seed in range(150):
        values, seconds = series(("white", "seasonal", "lognormal")[seed % 3], 1000 + seed, 400)
        found.append(StreamingDetector().update_many(values, at_seconds=seconds)[MIN_HISTORY_POINTS:])
    assert float(np.mean(np.concatenate(found) <= LIMIT)) <= LIMIT * FACTOR


def test_more_evidence_is_never_more_probable() -> None:
    evidence = np.linspace(0.0, 80.0, 5000)
    found = [p_value(each) for each in evidence.tolist()]
    assert found[0] == 1.0
    assert all(later <= earlier for earlier, later in itertools.pairwise(found))
    assert found[-1] > 0.0
    assert [strength for _, strength in TABLE] == sorted(strength for _, strength in TABLE)
