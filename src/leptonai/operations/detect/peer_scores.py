"""The arithmetic behind :mod:`leptonai.operations.detect.peers`: from values to one p-value a machine.

M machines, S signals, T steps, C = 2 S channels (levels first, then spreads), B blocks of steps, K stretches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_BLOCKS = 64
"""Of steps: a fault shorter than a sixteenth of the window is left to the detectors of single series."""
SHORTEST_PART = 16
"""The shortest stretch is this part of the window."""

CLIP_DEVIATIONS = 4.0
"""One wild sample must not pass for a lasting change: a step counts at most as this many deviations."""
DEVIATION_OF_MAD = 1.4826
"""A normal distribution's standard deviation over its median absolute deviation."""
DEVIATION_OF_MEAN_ABSOLUTE = 1.2533
"""The same over its mean absolute deviation: used where more than half of the machines agree exactly."""
SCALE_SAMPLE = 256
"""Machines from which the spread at one step is measured: 5 % error, and the later ranks take out the rest."""
FEW_MACHINES = 50
"""So many machines tell of one step's spread as much as the signal's usual spread does."""
MIN_STEP_SCALE_SHARE = 0.2
"""A step's spread counts as at least this share of the signal's usual one: a quiet step is not evidence."""
MIN_PRESENT_SHARE = 0.5
"""A channel with fewer of its steps present says nothing."""
MAD_EFFICIENCY = 0.37
"""Share of its sample's degrees of freedom that the median absolute deviation makes use of."""
FEW_MACHINES_EXCESS = 1.3
"""Distances from the median of few are wider in the tail than their own median says: 1.16 for 8, 1.08 for 16,
measured on normal noise."""
CHECKED = ((0.05, 1.960), (0.01, 2.576), (0.003, 2.968))
"""Upper shares of a channel's scores, and how far out a normal distribution's are; wider ones are shrunk to it."""
MIN_FREE_MACHINES = 3
"""Only shares of so many machines are checked: one faulty machine must not shrink what shows it."""

SHARE_OF_CHANNELS = 0.1
"""Of a faulty machine, that the fault shows in: the mixture likelihood of Xie & Siegmund 2013, section 2."""
EFFECT_VARIANCE = 9.0
"""Of the normal scores that a fault causes: three deviations, past what noise does."""
MIN_EIGENVALUE = 0.02
"""Of the correlation of channels: what copies of one signal differ in is rounding, not evidence."""
MIN_TAIL_MACHINES = 100
"""From so many on the tail of the likelihood ratio is read off the peers; fewer have no tail to speak of."""
FEW_TAIL_SHARE = 0.1
"""Among fewer than 50 machines Markov's bound is more than thirty times too careful on normal noise, white or with a
memory; a tenth of it is still careful."""
TAIL_SHARE = 0.1
"""Of the machines, past which the tail is taken as exponential."""
TAIL_SPANS = ((100, 0.1, 0.05), (400, 0.04, 0.01), (1000, 0.01, 0.003))
"""From so many machines on, shares of them between whose quantiles the tail's scale is measured; the largest counts."""
WILD_SCORE = 30.0
"""Scores are cut here: what is so far out is odd, however far."""
MAX_LOG_RATIO = 600.0
"""Of one channel: its exponential is still a number."""
MAX_CHECKED = 8
"""Stretches of a length whose tails are checked: more overlap with these."""
MIN_SAMPLES_A_CHANNEL = 20
"""Machines times separate stretches from which the correlation of so many channels can be told."""

Floats = NDArray[np.float64]
Floats32 = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Stretches:
    """The stretches of time looked at: ``begins_K`` and ``ends_K`` in steps, their contrasts over blocks.

    ``family_K``: stretches of one length share their noise; the first stretch is the whole window.
    """

    begins_K: NDArray[np.int64]
    ends_K: NDArray[np.int64]
    family_K: NDArray[np.int64]
    contrasts_KB: Floats
    edges: NDArray[np.int64]


def stretches(num_steps: int) -> Stretches:
    """The whole, all last parts, and halves, quarters, eighths and sixteenths, half overlapping.

    None but the whole starts at 0: first part against the rest is the rest against the first part.

    >>> found = stretches(64)
    >>> int(found.begins_K[0]), int(found.ends_K[0]), len(found.begins_K)
    (0, 64, 64)
    """
    num_blocks = min(MAX_BLOCKS, num_steps)
    edges = np.linspace(0, num_steps, num_blocks + 1).round().astype(np.int64)
    unit = max(1, num_blocks // SHORTEST_PART)
    pairs = {(num_blocks - length, num_blocks) for length in range(unit, num_blocks, unit)}
    length = num_blocks // 2
    while length >= unit:
        half = max(1, length // 2)
        pairs |= {(begin, begin + length) for begin in range(half, num_blocks - length + 1, half)}
        length //= 2
    inner = sorted(pairs, key=lambda pair: (pair[0] - pair[1], pair))
    rows = [np.full(num_blocks, 1.0 / num_blocks)]
    for begin, end in inner:
        row = np.full(num_blocks, -1.0 / (num_blocks - (end - begin)))
        row[begin:end] = 1.0 / (end - begin)
        rows.append(row)
    both = np.array([(0, num_blocks), *inner], dtype=np.int64)
    return Stretches(
        begins_K=edges[both[:, 0]],
        ends_K=edges[both[:, 1]],
        family_K=both[:, 1] - both[:, 0],
        contrasts_KB=np.array(rows),
        edges=edges,
    )


def distances(values_MST: Floats) -> Floats32:
    """How far each machine is from the median of all, at each step, in units of their spread; NaN: missing.

    The result has shape (S, T, M), for speed: machines lie side by side. The spread at one step is the median
    absolute deviation, or, where more than half of the machines agree exactly, the mean absolute one.
    """
    away_STM = np.array(values_MST.transpose(1, 2, 0), dtype=np.float64, order="C")
    missing = ~np.isfinite(away_STM)
    some_missing = bool(missing.any())
    if some_missing:
        away_STM[missing] = np.nan
    away_STM -= _medians(away_STM, some_missing)[..., None]
    scale_ST = _step_scales(away_STM, some_missing)
    away_STM /= np.where(scale_ST > 0.0, scale_ST, np.inf)[..., None]
    np.clip(away_STM, -CLIP_DEVIATIONS, CLIP_DEVIATIONS, out=away_STM)
    return away_STM.astype(np.float32)


def _step_scales(away_STM: Floats, some_missing: bool) -> Floats:
    every = max(1, away_STM.shape[2] // SCALE_SAMPLE)
    size_STM = np.abs(away_STM[..., ::every])
    scale_ST = DEVIATION_OF_MAD * _medians(size_STM, some_missing)
    if not scale_ST.all():
        mean_ST = DEVIATION_OF_MEAN_ABSOLUTE * _means(np.abs(away_STM), some_missing)
        agree = (scale_ST == 0.0).mean(axis=1) > 0.5
        scale_ST[agree] = mean_ST[agree]
    scale_ST = np.nan_to_num(scale_ST)
    usual_S1 = scale_ST.mean(axis=1, keepdims=True)
    num_machines = away_STM.shape[2]
    share = num_machines / (num_machines + FEW_MACHINES)
    mixed_ST = np.sqrt(share * scale_ST**2 + (1.0 - share) * usual_S1**2)
    return np.asarray(np.maximum(mixed_ST, MIN_STEP_SCALE_SHARE * usual_S1))


def _medians(values: Floats, some_missing: bool) -> Floats:
    """Medians along the last axis; rows with nothing in them give NaN."""
    if not some_missing:
        return np.asarray(np.median(values, axis=-1))
    # Half of what is missing goes to each end, so that one partition serves all rows.
    missing = np.isnan(values)
    odd = np.cumsum(missing, axis=-1) % 2 == 1
    filled = np.where(missing, np.where(odd, -np.inf, np.inf), values)
    with np.errstate(invalid="ignore"):
        middle = np.asarray(np.median(filled, axis=-1))
    return np.where(np.isfinite(middle), middle, np.nan)


def _means(values: Floats, some_missing: bool) -> Floats:
    if not some_missing:
        return np.asarray(values.mean(axis=-1))
    count = np.maximum(1, (~np.isnan(values)).sum(axis=-1))
    return np.asarray(np.nan_to_num(values).sum(axis=-1) / count)


def channels(away_STM: Floats32, edges: NDArray[np.int64]) -> tuple[Floats, NDArray[np.bool_]]:
    """Levels and spreads over blocks, shape (C, B, M), and which (C, M) have enough steps to say something.

    The spread is the mean root of the moves from step to step: the root is nearer to a normal distribution.
    """
    moves_STM = np.abs(np.diff(away_STM, axis=1, prepend=away_STM[:, 1:2]))
    np.sqrt(moves_STM, out=moves_STM)
    both = [_blocks(each, edges) for each in (away_STM, moves_STM)]
    return np.concatenate([each[0] for each in both]), np.concatenate([each[1] for each in both])


def _blocks(each_STM: Floats32, edges: NDArray[np.int64]) -> tuple[Floats, NDArray[np.bool_]]:
    missing = np.isnan(each_STM)
    num_steps = each_STM.shape[1]
    lengths = np.diff(edges).astype(np.float64)
    if not missing.any():
        means: Floats = np.add.reduceat(each_STM, edges[:-1], axis=1) / lengths[:, None]
        return means.astype(np.float64), np.ones((each_STM.shape[0], each_STM.shape[2]), np.bool_)
    sums = np.add.reduceat(np.where(missing, np.float32(0.0), each_STM), edges[:-1], axis=1)
    present = np.add.reduceat((~missing).astype(np.float32), edges[:-1], axis=1)
    total = present.sum(axis=1)
    own_mean = sums.sum(axis=1) / np.maximum(1.0, total)
    means = np.where(present > 0, sums / np.maximum(1.0, present), own_mean[:, None])
    return means.astype(np.float64), total >= MIN_PRESENT_SHARE * num_steps


def scores(blocks_CBM: Floats, valid_CM: NDArray[np.bool_], looked_at: Stretches) -> Floats:
    """Normal scores, shape (C, K, M): how far a machine's contrast is from those of its peers."""
    num_machines = blocks_CBM.shape[2]
    contrast_CKM = np.matmul(looked_at.contrasts_KB[None], blocks_CBM)
    contrast_CKM -= np.median(contrast_CKM, axis=-1)[..., None]
    num_blocks = looked_at.contrasts_KB.shape[1]
    for family in np.unique(looked_at.family_K):
        chosen = np.flatnonzero(looked_at.family_K == family)
        part = contrast_CKM[:, chosen]
        scale_C = _scales(np.abs(part).reshape(len(part), -1))
        num_apart = max(1, min(len(chosen), num_blocks // int(family)))
        scale_C *= 1.0 + FEW_MACHINES_EXCESS / num_machines
        part /= np.where(scale_C > 0.0, scale_C, np.inf)[:, None, None]
        part = _normal_scores(part, max(1.0, MAD_EFFICIENCY * num_machines * num_apart))
        contrast_CKM[:, chosen] = part
    contrast_CKM *= valid_CM[:, None, :]
    if num_machines >= MIN_TAIL_MACHINES:
        _shrink_tails(contrast_CKM, looked_at)
    return np.asarray(np.clip(contrast_CKM, -WILD_SCORE, WILD_SCORE))


def _scales(sizes: Floats) -> Floats:
    """Standard deviations from absolute deviations along the last axis, by their median, else their mean."""
    scale = DEVIATION_OF_MAD * np.median(sizes, axis=-1)
    mean = DEVIATION_OF_MEAN_ABSOLUTE * sizes.mean(axis=-1)
    # A median of nothing but rounding is none.
    return np.where(scale > 1e-9 * mean, scale, mean)


def _normal_scores(ratios: Floats, freedom: float) -> Floats:
    """Student's t to normal scores; Wallace 1959, within 0.02 below 5."""
    factor = (8.0 * freedom + 1.0) / (8.0 * freedom + 3.0)
    return np.asarray(np.sign(ratios) * factor * np.sqrt(freedom * np.log1p(ratios**2 / freedom)))


def _tail_factors(scores_CKM: Floats) -> Floats:
    """By how much each channel's scores are too wide for a normal distribution, at least 1."""
    few = MIN_FREE_MACHINES / scores_CKM.shape[2]
    checked = [(share, normal) for share, normal in CHECKED if share >= few]
    sizes = np.abs(scores_CKM).reshape(len(scores_CKM), -1)
    found = np.quantile(sizes, [1.0 - share for share, _ in checked], axis=1)
    normal = np.array([distance for _, distance in checked])
    return np.asarray(np.maximum(1.0, (found / normal[:, None]).max(axis=0)))


def evidence(scores_CKM: Floats, looked_at: Stretches) -> Floats:
    """Log likelihood ratio of a fault in some of the channels against none, shape (K, M).

    Where there is enough to tell how, the scores are made uncorrelated first (ZCA, Kessy and others 2018: as near
    to the channels as can be), for signals of one machine move together and would be counted twice. Else the
    evidence is cut to that of as many channels as are independent.
    """
    num_channels, _, num_machines = scores_CKM.shape
    share = 1.0
    if num_machines * SHORTEST_PART >= MIN_SAMPLES_A_CHANNEL * num_channels:
        scores_CKM = _uncorrelated(scores_CKM)
        if num_machines >= MIN_TAIL_MACHINES:
            _shrink_tails(scores_CKM, looked_at)
    else:
        share = _independent_share(scores_CKM)
    shrink = EFFECT_VARIANCE / (1.0 + EFFECT_VARIANCE)
    ratio = np.expm1(np.minimum(0.5 * (shrink * scores_CKM**2 - np.log1p(EFFECT_VARIANCE)), MAX_LOG_RATIO))
    return np.asarray(share * np.log1p(SHARE_OF_CHANNELS * ratio).sum(axis=0))


def _shrink_tails(scores_CKM: Floats, looked_at: Stretches) -> None:
    for family in np.unique(looked_at.family_K):
        chosen = np.flatnonzero(looked_at.family_K == family)
        factor_C = _tail_factors(scores_CKM[:, chosen[:: max(1, len(chosen) // MAX_CHECKED)]])
        if (factor_C > 1.0).any():
            scores_CKM[:, chosen] /= factor_C[:, None, None]


def _uncorrelated(scores_CKM: Floats) -> Floats:
    flat = scores_CKM.reshape(len(scores_CKM), -1)
    inner = np.clip(flat, -CHECKED[1][1], CHECKED[1][1])
    covariance = inner @ inner.T
    deviations = np.sqrt(np.maximum(np.diag(covariance), 1e-9))
    sizes, directions = np.linalg.eigh(covariance / np.outer(deviations, deviations))
    root = directions @ np.diag(1.0 / np.sqrt(np.maximum(sizes, MIN_EIGENVALUE))) @ directions.T
    return np.asarray((root @ flat).reshape(scores_CKM.shape))


def p_values(evidence_KM: Floats) -> Floats:
    """The chance that a healthy machine looks as odd, one a machine.

    The mean of the likelihood ratios over the stretches has expectation at most 1 where nothing is wrong, so its
    inverse is a p-value (Markov). With many machines it is not believed to be less than the tail over them says.
    """
    best_M = evidence_KM.max(axis=0)
    joint_M = best_M + np.log(np.exp(evidence_KM - best_M).mean(axis=0))
    num_machines = len(joint_M)
    if num_machines < MIN_TAIL_MACHINES:
        share = FEW_TAIL_SHARE if num_machines < FEW_MACHINES else 1.0
        return np.asarray(np.minimum(1.0, share * np.exp(-joint_M)))
    start = float(np.quantile(joint_M, 1.0 - TAIL_SHARE))
    scale = max(
        float(np.quantile(joint_M, 1.0 - far) - np.quantile(joint_M, 1.0 - near)) / float(np.log(near / far))
        for at_least, near, far in TAIL_SPANS
        if num_machines >= at_least
    )
    tail_M = TAIL_SHARE * np.exp(-(joint_M - start) / max(scale, 1e-9))
    bound_M = np.exp(-np.maximum(joint_M, 0.0))
    return np.where(joint_M > start, np.clip(tail_M, bound_M, TAIL_SHARE), _upper_share(joint_M))


def _upper_share(values_M: Floats) -> Floats:
    """Share of the values that are as large or larger."""
    below = np.searchsorted(np.sort(values_M), values_M, side="left")
    return np.asarray(1.0 - below / len(values_M))


def _independent_share(scores_CKM: Floats) -> float:
    """How many independent channels the correlated ones are worth, as a share of their number."""
    flat = scores_CKM.reshape(len(scores_CKM), -1)
    flat = flat[np.abs(flat).max(axis=1) > 0.0]
    if len(flat) < 2:
        return 1.0
    ranked = flat / np.sqrt((flat**2).mean(axis=1))[:, None]
    correlation = ranked @ ranked.T / ranked.shape[1]
    return float(min(1.0, len(flat) / (correlation**2).sum()))


def rejected(p_values_M: Floats, false_alarm_rate: float) -> list[int]:
    """Who is odd, the surest first: Benjamini & Hochberg 1995, so a window without any fault keeps the rate.

    >>> rejected(np.array([0.5, 1e-6, 0.4, 0.004]), 0.01)
    [1, 3]
    """
    order = np.argsort(p_values_M, kind="stable")
    allowed = false_alarm_rate * np.arange(1, len(order) + 1) / len(order)
    passing = np.flatnonzero(p_values_M[order] <= allowed)
    return [int(machine) for machine in order[: passing[-1] + 1]] if len(passing) else []
