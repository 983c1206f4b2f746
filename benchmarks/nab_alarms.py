"""From the strength of evidence to alarms as NAB pays for them: a layer of this benchmark, not of the detector.

NAB pays one hit a window and charges every false point, so it rewards silence after an alarm that an operator would
not want. The constants below belong to that bargain. They were chosen on the artificial, tweet and ad-exchange files
and hold for all three profiles; only the level is fitted, per profile, as NAB fits every detector's threshold.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Points = NDArray[np.int64]

CONFIRM_POINTS, LONE_COST = 6, 1.0
"""Evidence counts up to what one of the last six points had, or less one ten-fold: a lone point must be stronger."""
PEAK, FATIGUE, HALF_LIFE_POINTS = 1.5, 0.6, 5000.0
"""Runs above the peak are counted and forgotten by halves; a series that has had many must say more."""
SILENCE_POINTS, LOUDER = 100, 2.5
"""After an alarm only one so many times stronger speaks."""
LEVELS = np.exp(np.arange(math.log(0.9), math.log(4.0), 0.02))
"""Alarm levels tried, 2 % apart, in ten-folds of improbability after confirmation and fatigue."""


def weighed(strengths: Floats) -> Floats:
    """The strengths after confirmation and fatigue; each looks at no later point."""
    recent = np.zeros(len(strengths))
    for lag in range(1, CONFIRM_POINTS + 1):
        recent[lag:] = np.maximum(recent[lag:], strengths[:-lag])
    confirmed = np.maximum(np.minimum(strengths, recent), strengths - LONE_COST)
    found, peaks, was_above = np.empty(len(strengths)), 0.0, False
    forget = 0.5 ** (1.0 / HALF_LIFE_POINTS)
    for i, strength in enumerate(confirmed.tolist()):
        found[i] = strength - FATIGUE * math.log10(1.0 + peaks)
        is_above = strength > PEAK
        peaks = peaks * forget + (is_above and not was_above)
        was_above = is_above
    return found


def alarms(weighed_strengths: Floats, level: float) -> Points:
    """Indices of the alarms at a level.

    >>> alarms(np.array([0.0, 2.0, 2.0, 6.0]), 1.5)
    array([1, 3])
    """
    found, last, loudness = list[int](), -SILENCE_POINTS - 1, 0.0
    for i in np.flatnonzero(weighed_strengths >= level).tolist():
        strength = float(weighed_strengths[i])
        if i - last > SILENCE_POINTS or strength > LOUDER * loudness:
            found.append(i)
            last, loudness = i, strength
    return np.array(found, np.int64)
