"""Histories that end without a failure, counted for what they say."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leptonai.operations.predict.history import Floats


def outcome_weights(
    left_N: Floats, failed_N: NDArray[np.bool_], weights_N: Floats, horizon: float
) -> tuple[NDArray[np.bool_], Floats]:
    """Which cases failed within a horizon, and what each case weighs.

    A case watched for less than the horizon without a failure says nothing of it: weight 0. The others weigh more by
    the inverse chance of having been watched that long (Kaplan-Meier of the end of watching), so that what is left
    stands for all.

    Args:
        left_N: time from the case to the end of its history, >= 0.
        failed_N: that end was a failure.
        weights_N: of the cases, > 0.
        horizon: > 0.

    Source: Graf, Schmoor, Sauerbrei & Schumacher 1999.

    >>> hit, weight = outcome_weights(np.array([1.0, 1, 5, 5]), np.array([True, False, False, False]), np.ones(4), 3.0)
    >>> hit.tolist(), [round(float(each), 2) for each in weight]
    ([True, False, False, False], [1.0, 0.0, 1.5, 1.5])
    """
    hit_N = failed_N & (left_N <= horizon)
    known_N = hit_N | (left_N > horizon)
    watched_N = _still_watched(left_N, failed_N, weights_N, np.minimum(left_N, horizon), hit_N)
    return hit_N, np.where(known_N, weights_N / np.maximum(watched_N, 1e-3), 0.0)


def _still_watched(
    left_N: Floats, failed_N: NDArray[np.bool_], weights_N: Floats, at_N: Floats, before_N: NDArray[np.bool_]
) -> Floats:
    """The chance of being watched beyond ``at`` (just before it where ``before``), by Kaplan-Meier."""
    times, where = np.unique(left_N, return_inverse=True)
    ended = np.bincount(where, weights_N * ~failed_N, len(times))
    leaving = np.bincount(where, weights_N, len(times))
    failures = leaving - ended
    at_risk = leaving[::-1].cumsum()[::-1] - failures  # failures at the same time come first
    share = np.cumprod(1 - np.divide(ended, at_risk, out=np.zeros(len(times)), where=at_risk > 0))
    share = np.concatenate([[1.0], share])
    after = np.searchsorted(times, at_N, side="right")
    just_before = np.searchsorted(times, at_N, side="left")
    return np.asarray(share[np.where(before_N, just_before, after)])
