"""The sequential test behind :mod:`leptonai.operations.watch.straggler`: has a rank's excess risen by 10 %?

Shapes: R ranks, G candidate rates, L remembered steps. An *excess* is the logarithm of a rank's time over the
others'. In units of the noise and clipped it is a *score*; a *rate* says how much evidence a score is worth.

The test is a cumulative sum whose increments, ``rate * score - price``, have an exponential of mean at most one where
nothing has changed (the price is the larger of the logarithm of that mean, as seen so far, and what half the slowdown
would give). Its exponential is then an e-process started anew at each step, and the mean number of steps to a false
alarm at least the exponential of the threshold (Shin, Ramdas and Rinaldo 2022, "E-detectors", theorem 2.4), for any
tails. Scores of neighbouring steps are not independent; the price is that of sums over blocks of steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

SLOWDOWN = math.log(1.10)
"""Of what is looked for: from 10 % on a slow rank is worth an operator's time (FALCON, 2410.12588)."""
USUAL_OFFSET = math.log(1.03)
"""Ranks that are always so much slower are no news; more than that is not excused by being constant."""
USUAL_LEAD = -0.2
"""Nor is a rank held to more than this of its own speed when it was fast."""
CLIP_SCORE = 3.0
"""Noise deviations that one step counts as at most: an interrupted step takes twice as long and says nothing."""
MIN_NOISE = 0.02
"""Steps are never believed to be steadier than this: else three interrupted ones in a row would convince."""
FIRST_NOISE = 0.05
"""Noise assumed before any was seen, with the weight of some steps."""
FIRST_STEPS = 8
BASE_MEMORY_STEPS = 500
"""Steps that a rank's usual excess is an average over."""
NOISE_MEMORY_STEPS = 1000
"""Steps that the noise, its tails and its memory are averages over."""
NUM_LAGGED = 64
"""Steps that are remembered. They enter the averages only after so many: by then a slowdown has been noticed."""
BLOCK_STEPS = 8
"""Over which scores are summed to see their memory."""
FIRST_MEMORY = 1.2
"""Variance of a mean over that of independent scores, assumed at first."""
RATES = np.array([0.05, 0.1, 0.15, 0.2, 0.3, 0.4, 0.6, 0.8, 1.0, 1.3])
EVIDENCE_TO_NAME = 14.0
"""A false alarm then is due once in ``e**14`` = 1,200,000 steps of a rank at most."""
EVIDENCE_TO_END = 7.0
"""The same for the end of a slowdown, where an error costs little."""
NORMAL_95 = 1.96
MEDIAN_EFFICIENCY_ROOT = 1.2533
"""Deviation of a median over that of a mean, of a normal distribution."""
DEVIATION_OF_MEAN_ABSOLUTE = 1.2533

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How slow a rank is, as a logarithm: the middle, a 95 % interval; since when, and how sure."""

    middle: float
    low: float
    high: float
    since_step: int
    p_value: float


class SlowdownTest:
    """One test a rank, with noise learned from all of them."""

    def __init__(self, num_ranks: int) -> None:
        self._base_R = np.zeros(num_ranks)
        self._noise_R = np.full(num_ranks, FIRST_NOISE)
        self._growth_G = np.exp(0.5 * RATES**2)
        self._memory = FIRST_MEMORY
        self._num_steps, self._num_learned = 0, 0
        self._evidence_R = np.zeros(num_ranks)
        self._relief_R = np.zeros(num_ranks)
        self._since_R = np.zeros(num_ranks, np.int64)
        self._slow_R = np.zeros(num_ranks, np.bool_)
        self._lagged_LR = np.full((NUM_LAGGED, num_ranks), np.nan)
        self._steps_L = np.full(NUM_LAGGED, -1, np.int64)
        self._sizes: dict[int, Size] = {}
        self._rate, self._price, self._shift = self._best_rate()

    def update(self, step: int, excess_R: Floats) -> tuple[list[int], list[int]]:
        """Take in one step; NaN: not known. Returns the ranks that became slow and those that no longer are."""
        at = self._num_steps % NUM_LAGGED
        if at % BLOCK_STEPS == 0:
            if self._num_steps >= NUM_LAGGED:
                self._learn(slice(at, at + BLOCK_STEPS))
            elif self._num_steps == FIRST_STEPS:
                self._first_noise()
            self._rate, self._price, self._shift = self._best_rate()
        self._lagged_LR[at], self._steps_L[at] = excess_R, self._num_steps
        score_R = self._scores(excess_R)
        gain_R = self._rate * score_R - self._price
        known_R = ~np.isnan(excess_R)
        if not known_R.all():
            gain_R[~known_R] = 0.0
        self._since_R[self._evidence_R <= 0.0] = self._num_steps
        self._evidence_R += gain_R
        np.maximum(self._evidence_R, 0.0, out=self._evidence_R)
        if self._slow_R.any():
            relief_R = np.where(known_R, self._rate * (self._shift - score_R) - self._price, 0.0)
            self._relief_R = np.where(self._slow_R, np.maximum(0.0, self._relief_R + relief_R), 0.0)
        self._num_steps += 1
        return self._begun(step), self._ended()

    def size(self, rank: int) -> Size:
        """How slow a rank is that was named."""
        return self._sizes[rank]

    def _begun(self, step: int) -> list[int]:
        if float(self._evidence_R.max()) < EVIDENCE_TO_NAME:
            return []
        begun: list[int] = np.flatnonzero(~self._slow_R & (self._evidence_R >= EVIDENCE_TO_NAME)).tolist()
        for rank in begun:
            self._slow_R[rank], self._relief_R[rank] = True, 0.0
            self._sizes[rank] = self._measure(rank, step)
        return begun

    def _ended(self) -> list[int]:
        if not self._slow_R.any():
            return []
        ended = np.flatnonzero(self._slow_R & (self._relief_R >= EVIDENCE_TO_END))
        self._slow_R[ended] = False
        self._evidence_R[ended] = 0.0
        found: list[int] = ended.tolist()
        return found

    def _measure(self, rank: int, step: int) -> Size:
        since = int(self._since_R[rank])
        rows = self._lagged_LR[self._steps_L >= since, rank]
        rows = rows[np.isfinite(rows)] - self._base_R[rank]
        middle = float(np.median(rows))
        spread = float(self._noise_R[rank]) * MEDIAN_EFFICIENCY_ROOT * math.sqrt(self._memory / len(rows))
        return Size(
            middle=middle, low=middle - NORMAL_95 * spread, high=middle + NORMAL_95 * spread,
            since_step=step - (self._num_steps - 1 - since), p_value=math.exp(-float(self._evidence_R[rank])),
        )  # fmt: skip

    def _scores(self, excess: Floats) -> Floats:
        """Of one step's ranks, or of several steps'; NaN stays."""
        found: Floats = (excess - self._base_R) / self._noise_R
        np.minimum(found, CLIP_SCORE, out=found)
        return np.maximum(found, -CLIP_SCORE, out=found)

    def _best_rate(self) -> tuple[float, float, float]:
        """The rate that gathers evidence of the slowdown fastest, its price a step, and the slowdown as a score."""
        shift = min(SLOWDOWN / float(np.median(self._noise_R)), CLIP_SCORE)
        price_G = np.maximum(self._memory * np.log(self._growth_G), 0.5 * RATES * shift)
        best = int(np.argmax(RATES * shift - price_G))
        return float(RATES[best]), float(price_G[best]), shift

    def _first_noise(self) -> None:
        """After few steps: the noise of all ranks, so that the first hundred steps are not judged blindly."""
        rows = self._lagged_LR[: self._num_steps]
        rows = rows[:, np.isfinite(rows).all(axis=0)]
        if rows.shape[1] < 2:
            return
        away = np.abs(rows - np.median(rows, axis=0))
        seen = DEVIATION_OF_MEAN_ABSOLUTE * float(np.minimum(away, 3.0 * np.median(away)).mean())
        self._noise_R[:] = max(MIN_NOISE, seen)

    def _learn(self, block: slice) -> None:
        """Let steps of some time ago into the averages, but for ranks that are slow or were about to seem so."""
        rows = self._lagged_LR[block]
        begins_R = np.where(self._evidence_R > 0.0, self._since_R, self._num_steps)
        calm_R = ~self._slow_R & (begins_R > self._steps_L[block][-1]) & ~np.isnan(rows).any(axis=0)
        self._num_learned += BLOCK_STEPS
        if not calm_R.any():
            return
        scores = self._scores(rows)[:, calm_R]
        gain = BLOCK_STEPS / min(self._num_learned + FIRST_STEPS, BASE_MEMORY_STEPS)
        base_R = self._base_R[calm_R] + gain * self._noise_R[calm_R] * scores.mean(axis=0)
        self._base_R[calm_R] = np.clip(base_R, USUAL_LEAD, USUAL_OFFSET)
        gain = BLOCK_STEPS / min(self._num_learned + 4 * FIRST_STEPS, NOISE_MEMORY_STEPS)
        sizes_R = DEVIATION_OF_MEAN_ABSOLUTE * np.abs(scores).mean(axis=0)
        self._noise_R[calm_R] = np.maximum(MIN_NOISE, self._noise_R[calm_R] * (1.0 + gain * (sizes_R - 1.0)))
        grown_G = np.exp(RATES[:, None] * scores.ravel()).mean(axis=1)
        self._growth_G += gain * (grown_G - self._growth_G)
        # A sum's variance over that of a sum of independent scores of the same size.
        ratio = float((scores.sum(axis=0) ** 2).mean()) / (BLOCK_STEPS * max(float((scores**2).mean()), 1e-9))
        self._memory = max(1.0, self._memory + gain * (ratio - self._memory))
