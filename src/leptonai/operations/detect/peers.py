"""One machine against its peers, one rank against the others: which is odd, in what, since when.

Shapes: M machines, S signals (metrics), T steps, C channels (level and spread of every signal), B blocks of
steps, K stretches of time that are looked at.

How. (1) At every step a machine's distance from the median of all, in units of their spread (median absolute
deviation), removes whatever befalls all alike. (2) For stretches of many lengths and places, each machine's mean
distance inside less that outside: it was ordinary and then was not, which shows an effect far smaller than the
differences that machines always have; and the mean over everything. (3) Each is ranked against the same quantity
of the peers, so noise that is correlated in time is no surprise. (4) A likelihood ratio joins the channels,
because a fault shows in a few of them together. (5) Its tail over the peers gives a p-value, and the number of
machines is paid for (Bonferroni for the first, Benjamini-Hochberg for more).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leptonai.core.errors import InputError
from leptonai.operations.detect.peer_scores import (
    Stretches,
    channels,
    distances,
    evidence,
    p_values,
    rejected,
    scores,
    stretches,
)

MIN_MACHINES = 4
"""Of three one cannot say which is odd once noise is counted: the median of the others is one machine."""
MIN_STEPS = 8
FALSE_ALARMS_PER_WINDOW = 0.01
"""A window looked at every hour then cries wolf about twice a season."""

NAMED_SCORE = 3.0
"""Normal score from which a channel is named as a reason; the strongest is named always."""
MAX_NAMED = 5

Floats = NDArray[np.float64]
ChannelKind = Literal["level", "spread"]


@dataclass(frozen=True, slots=True, kw_only=True)
class OddMetric:
    """In what a machine is odd.

    Args:
        metric: index of the signal.
        kind: its level, or how much it moves from step to step.
        score: how far from the peers, as a normal score; the sign says above or below.
        before: the machine's own median outside the stretch (its mean move, for ``spread``); NaN: there was no
            outside.
        now: the same inside.
        peers_before: the median of all machines outside.
        peers_now: the same inside.
    """

    metric: int
    kind: ChannelKind
    score: float
    before: float
    now: float
    peers_before: float
    peers_now: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Odd:
    """One machine that is not like the others.

    Args:
        machine: its index.
        p_value: the chance that a healthy machine looks as odd in such a window, in (0, 1].
        first_step: where it began, as far as can be told; 0: it was odd all the window.
        end_step: the step after the last odd one; T: it lasts.
        metrics: the strongest first, at most five.
    """

    machine: int
    p_value: float
    first_step: int
    end_step: int
    metrics: tuple[OddMetric, ...]


def odd_ones(values_MST: ArrayLike, *, false_alarms_per_window: float = FALSE_ALARMS_PER_WINDOW) -> list[Odd]:
    """The machines that are not like their peers, the surest first.

    Args:
        values_MST: value of each signal of each machine at each step; NaN or infinite: missing. The machines do
            the same work; most are healthy. Signals may have any unit and scale. Counters: give their rates.
        false_alarms_per_window: how often a window without any fault may name a machine, in (0, 1).

    Raises:
        InputError: not three axes, fewer than four machines (one cannot tell then) or eight steps, a rate
            outside its range.

    >>> values = np.random.default_rng(1).normal(size=(40, 3, 120))
    >>> values[7, 2, 80:] += 2.0
    >>> [(odd.machine, odd.metrics[0].metric, abs(odd.first_step - 80) < 5) for odd in odd_ones(values)]
    [(7, 2, True)]
    """
    values = _checked(values_MST, false_alarms_per_window)
    looked_at = stretches(values.shape[2])
    away_STM = distances(values)
    scores_CKM = scores(*channels(away_STM, looked_at.edges), looked_at)
    evidence_KM = evidence(scores_CKM, looked_at)
    p_values_M = p_values(evidence_KM)
    found = []
    for machine in rejected(p_values_M, false_alarms_per_window):
        stretch = int(evidence_KM[:, machine].argmax())
        scores_C = scores_CKM[:, stretch, machine]
        begin, end = _bounds(away_STM[:, :, machine], scores_C, looked_at, stretch)
        found.append(
            Odd(
                machine=machine,
                p_value=float(max(p_values_M[machine], np.finfo(np.float64).tiny)),
                first_step=begin,
                end_step=end,
                metrics=_named(values, machine, scores_C, begin, end),
            )
        )
    return found


def _checked(values_MST: ArrayLike, rate: float) -> Floats:
    values = np.asarray(values_MST, dtype=np.float64)
    if values.ndim != 3 or values.shape[1] == 0:
        raise InputError(f"expected values of shape (machines, signals, steps), found {values.shape}")
    if values.shape[0] < MIN_MACHINES:
        raise InputError(
            f"expected at least {MIN_MACHINES} machines, found {values.shape[0]}: one cannot tell which is odd",
            hint="compare with the machine's own past instead, by a streaming detector",
        )
    if values.shape[2] < MIN_STEPS:
        raise InputError(f"expected at least {MIN_STEPS} steps, found {values.shape[2]}")
    if not 0.0 < rate < 1.0:
        raise InputError(f"expected false_alarms_per_window between 0 and 1, found {rate}")
    return values


def _bounds(
    away_ST: NDArray[np.float32], scores_C: Floats, looked_at: Stretches, stretch: int
) -> tuple[int, int]:
    """Begin and end of the stretch, to the step: where the contrast of the named signals is greatest."""
    num_steps = away_ST.shape[1]
    begin, end = int(looked_at.begins_K[stretch]), int(looked_at.ends_K[stretch])
    if (begin, end) == (0, num_steps):
        return begin, end
    weights_C = np.where(np.abs(scores_C) >= min(NAMED_SCORE, float(np.abs(scores_C).max())), scores_C, 0.0)
    num_signals = len(away_ST)
    filled = np.nan_to_num(away_ST).astype(np.float64)
    moves = np.sqrt(np.abs(np.diff(filled, axis=1, prepend=filled[:, 1:2])))
    joint_T = weights_C[:num_signals] @ filled + weights_C[num_signals:] @ moves
    reach = end - begin
    begin = _best_edge(joint_T, range(max(0, begin - reach), end - 1), lambda edge: (edge, end))
    if end < num_steps:
        low, high = begin + 2, min(num_steps, end + reach)
        end = _best_edge(joint_T, range(low, high + 1), lambda edge: (begin, edge))
    return begin, end


def _best_edge(joint_T: Floats, edges: range, stretch_of: Callable[[int], tuple[int, int]]) -> int:
    sums = np.concatenate([[0.0], np.cumsum(joint_T)])
    num_steps = len(joint_T)

    def contrast(edge: int) -> float:
        begin, end = stretch_of(edge)
        inside, outside = end - begin, num_steps - (end - begin)
        if outside == 0:
            return -np.inf
        within = float(sums[end] - sums[begin])
        difference = within / inside - (float(sums[-1]) - within) / outside
        return difference / float(np.sqrt(1.0 / inside + 1.0 / outside))

    return max(edges, key=contrast)


def _named(values_MST: Floats, machine: int, scores_C: Floats, begin: int, end: int) -> tuple[OddMetric, ...]:
    num_signals = values_MST.shape[1]
    order = np.argsort(-np.abs(scores_C), kind="stable")[:MAX_NAMED]
    chosen = [int(c) for place, c in enumerate(order) if place == 0 or abs(scores_C[c]) >= NAMED_SCORE]
    named = []
    for channel in chosen:
        kind: ChannelKind = "level" if channel < num_signals else "spread"
        signal_MT = values_MST[:, channel % num_signals]
        if kind == "spread":
            signal_MT = np.abs(np.diff(signal_MT, axis=1, prepend=signal_MT[:, 1:2]))
        inside = np.zeros(signal_MT.shape[1], np.bool_)
        inside[begin:end] = True
        named.append(
            OddMetric(
                metric=channel % num_signals,
                kind=kind,
                score=float(scores_C[channel]),
                before=_middle(signal_MT[machine, ~inside]),
                now=_middle(signal_MT[machine, inside]),
                peers_before=_middle(signal_MT[:, ~inside]),
                peers_now=_middle(signal_MT[:, inside]),
            )
        )
    return tuple(named)


def _middle(values: Floats) -> float:
    present = values[np.isfinite(values)]
    return float(np.median(present)) if present.size else float("nan")
