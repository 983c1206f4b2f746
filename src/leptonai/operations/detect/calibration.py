"""From the evidence of channels to one p-value that means what it says.

**Joint evidence.** Channels see the same series, so their p-values must not be multiplied: E = (sum e^4)^(1/4) of
their ``-log10 p`` lies between the greatest of them and a product. The two novelty channels, which are nearly the same
question, enter as their mean.

**P-value.** What a detector's E exceeds by chance depends little on the series, because each channel ranks its
distances among its own past: a fixed, monotone table suffices. It was fitted once, on series that were made up (12
kinds: white noise, autoregressive noise with coefficients 0.5 to 0.99, daily seasons with either, log-normal and
Student-t(3) noise, counts, uniform and rare binary values; points 10 s to 1 h apart; detectors 64 to 10,000 points
old), as the share of points with at least that E, each kind and age counting alike. Heavy tails are in the pool on
purpose. Measured on other seeds, the share of points with p <= 0.001 is 0.0002 to 0.0015 (bounded noise even less,
heavy tails the most), with p <= 0.01 0.004 to 0.02, with p <= 0.0001 up to 0.0004; below 1e-5 the table goes on along
its last slope and is only an order.

A stationary series is assumed. A random walk is new all the time: its p-values are up to seven times too small.
"""

from __future__ import annotations

import math
from bisect import bisect_right

import numpy as np
from numpy.typing import NDArray

from leptonai.operations.detect.streaming_state import CONTEXT, DAY, SHAPE

Floats = NDArray[np.float64]

TABLE: tuple[tuple[float, float], ...] = (
    (0.0, 0.0), (0.25, 0.066), (0.5, 0.145), (0.75, 0.294), (1.0, 0.483), (1.25, 0.684), (1.5, 0.887),
    (1.75, 1.082), (2.0, 1.278), (2.25, 1.483), (2.5, 1.693), (2.75, 1.928), (3.0, 2.144), (3.25, 2.373),
    (3.5, 2.576), (3.75, 2.764), (4.0, 2.945), (4.5, 3.269), (5.0, 3.547), (5.5, 3.787), (6.0, 4.002),
    (7.0, 4.339), (8.0, 4.684), (10.0, 5.086), (60.0, 15.086),
)  # fmt: skip
"""Joint evidence, and -log10 of the share of ordinary points that have as much."""
_EVIDENCE = [evidence for evidence, _ in TABLE]
_STRENGTH = [strength for _, strength in TABLE]
_SLOPES = [
    (_STRENGTH[i + 1] - _STRENGTH[i]) / (_EVIDENCE[i + 1] - _EVIDENCE[i]) for i in range(len(TABLE) - 1)
]


def joint_evidence(evidence_PC: Floats) -> Floats:
    """E of each point, from its evidence in C channels.

    >>> joint_evidence(np.array([[0.0, 0.0, 3.0, 0.0, 0.0, 0.0, 0.0]]))
    array([3.])
    """
    novelty_P = (evidence_PC[:, SHAPE] + evidence_PC[:, CONTEXT]) / 2.0
    sum_P = (novelty_P * novelty_P) ** 2
    for channel in range(DAY, evidence_PC.shape[1]):
        square_P = evidence_PC[:, channel] * evidence_PC[:, channel]
        sum_P = sum_P + square_P * square_P
    return np.asarray(np.sqrt(np.sqrt(sum_P)))


def p_value(evidence: float) -> float:
    """The chance that an ordinary point has as much joint evidence, in (0, 1].

    >>> p_value(0.0), round(p_value(4.0), 5)
    (1.0, 0.00114)
    """
    place = min(bisect_right(_EVIDENCE, evidence) - 1, len(_SLOPES) - 1)
    return math.exp(-math.log(10.0) * (_STRENGTH[place] + _SLOPES[place] * (evidence - _EVIDENCE[place])))
