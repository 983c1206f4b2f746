"""Which rank of a run is slow, by how much, since when, and whether it computes or communicates slowly.

Shapes: R ranks, G candidate rates.

How. (1) At every step a rank's computing time is divided by the median of the others' at the same step, which takes
out whatever befalls all alike (a longer batch, a warmer room). (2) The logarithm less the rank's own usual value is
clipped, so one step that takes twice as long says no more than one that is a little late. (3) A sequential test adds
up what speaks for a slowdown of 10 % against none; the rate at which it believes is chosen, and paid for, by the
noise seen so far, its tails and its memory included. (4) Waiting for a slow rank lengthens the exchange of all the
others; so communication is judged by what is left of the exchange after the wait for the last rank.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.operations.watch.slowdown import SlowdownTest

MIN_RANKS = 2
"""One rank has no others to compare with; see :class:`StragglerWatch` for two and three."""
TYPICAL_GAIN = 0.05
"""Of the running length of a step, to which time lost in communication is compared: some twenty steps."""

Cause = Literal["compute", "network"]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class StragglerFinding:
    """A rank has become slow, or (``over``) no longer is.

    Args:
        rank: which.
        cause: ``compute``: its own work takes longer; ``network``: its part of the exchange does.
        ratio: its time over what it would be were it like the others and its own past. For ``network``: one plus the
            time it loses in communication, as a share of a usual step.
        low, high: 95 % interval of ``ratio``.
        since_step: the first slow step, as far as can be told.
        p_value: an upper bound of the chance that a rank without fault shows as much from a given step on, in (0, 1].
        over: it has passed; ``ratio`` is then the last slow one.
    """

    rank: int
    cause: Cause
    ratio: float
    low: float
    high: float
    since_step: int
    p_value: float
    over: bool = False


class StragglerWatch:
    """Follows the step times of a gang and names ranks that are lastingly slow, by 10 % or more.

    Strictly causal; memory is a few kilobytes a rank, whatever the number of steps. A rank that is a constant 3 %
    slower than the others is no news, one that is 10 % slower is, also from the first step on. With the noise of a
    rank that has a device of its own (single steps within 5 %) 10 % is named within twenty steps; three times that
    noise needs ten times the steps.

    Limits. Of two ranks, one becoming faster cannot be told from the other becoming slower; of three, the slow one
    is told from the others, but two that become slow together pass for one that became fast, as does any half of
    a larger gang. Where an exchange ends at the same moment for all, as a ring all-reduce does, a slow link
    lengthens it for all alike, and no rank is named for it.

    Args:
        num_ranks: at least 2.

    Raises:
        InputError: fewer than two ranks.

    >>> random, watch, named = np.random.default_rng(1), StragglerWatch(8), []
    >>> for step in range(300):
    ...     seconds = random.lognormal(0.0, 0.03, 8)
    ...     seconds[5] *= 1.1 if step >= 200 else 1.0
    ...     named += watch.update(step, seconds, seconds.max() - seconds + 0.5)
    >>> [(found.rank, found.cause, abs(found.since_step - 200) < 10, round(found.ratio, 1)) for found in named]
    [(5, 'compute', True, 1.1)]
    """

    def __init__(self, num_ranks: int) -> None:
        if num_ranks < MIN_RANKS:
            raise InputError(
                f"expected at least {MIN_RANKS} ranks, found {num_ranks}: there is nobody to compare with",
                hint="watch the throughput of the run instead",
            )
        self._num_ranks = num_ranks
        self._compute, self._network = SlowdownTest(num_ranks), SlowdownTest(num_ranks)
        self._typical_seconds = 0.0

    def update(
        self, step: int, compute_seconds: Sequence[float] | Floats, exchange_seconds: Sequence[float] | Floats
    ) -> tuple[StragglerFinding, ...]:
        """Take in one step, or the means over a few.

        Args:
            step: its number; only used to say since when.
            compute_seconds: of each rank, before it waits for others. NaN, infinite or not above 0: not known.
            exchange_seconds: of each rank, from the end of its computing to the end of the exchange, the wait for
                others included; empty: not known.

        Raises:
            InputError: another number of ranks than at first.
        """
        compute_R = self._checked(compute_seconds, "compute_seconds")
        compute_R = np.where(compute_R > 0.0, compute_R, np.nan)
        away_R = np.log(compute_R)
        found = self._named("compute", self._compute, step, away_R - others_median(away_R))
        if len(exchange_seconds) and np.isfinite(compute_R).any():
            exchange_R = self._checked(exchange_seconds, "exchange_seconds")
            own_R = np.maximum(0.0, exchange_R - (np.nanmax(compute_R) - compute_R))
            lost_R = own_R - others_median(own_R)
            usual_seconds = self._usual_seconds(compute_R, own_R)
            found += self._named(
                "network", self._network, step, np.log1p(np.maximum(lost_R / usual_seconds, -0.5))
            )
        return tuple(found)

    def _checked(self, seconds: Sequence[float] | Floats, name: str) -> Floats:
        values = np.asarray(seconds, dtype=np.float64)
        if values.shape != (self._num_ranks,):
            raise InputError(
                f"{name}: expected one of each of {self._num_ranks} ranks, found shape {values.shape}"
            )
        return np.where(np.isfinite(values), values, np.nan)

    def _usual_seconds(self, compute_R: Floats, own_R: Floats) -> float:
        now = _median(compute_R) + _median(own_R)
        if math.isfinite(now):
            before = self._typical_seconds
            # The logarithm's running median: one long step must not count for twenty.
            self._typical_seconds = (
                before * math.exp(math.copysign(TYPICAL_GAIN, now - before)) if before else now
            )
        return self._typical_seconds or 1.0

    def _named(self, cause: Cause, test: SlowdownTest, step: int, away_R: Floats) -> list[StragglerFinding]:
        begun, ended = test.update(step, away_R)
        found = []
        for over, ranks in ((False, begun), (True, ended)):
            for rank in ranks:
                size = test.size(rank)
                found.append(
                    StragglerFinding(
                        rank=rank, cause=cause, ratio=math.exp(size.middle), low=math.exp(size.low),
                        high=math.exp(size.high), since_step=size.since_step, p_value=size.p_value, over=over,
                    )
                )  # fmt: skip
        return found


def others_median(values_R: Floats) -> Floats:
    """The median of all but oneself; NaN: missing.

    >>> others_median(np.array([1.0, 2.0, 4.0, 9.0])).tolist()
    [4.0, 4.0, 2.0, 2.0]
    """
    present = ~np.isnan(values_R)
    if not present.all():
        found_R = np.full(len(values_R), np.nan)
        if present.any():
            found_R[present] = others_median(values_R[present])
        return found_R
    num_others = len(values_R) - 1
    if num_others < 1:
        return np.full(len(values_R), np.nan)
    order = values_R.argsort(kind="stable")
    ordered = values_R[order]
    high = num_others // 2
    low = high if num_others % 2 else high - 1
    # Whoever stands before the middle moves it up by one place.
    found_R = np.empty(len(values_R))
    found_R[order] = 0.5 * (ordered[high] + ordered[low])
    found_R[order[: low + 1]] += 0.5 * (ordered[low + 1] - ordered[low])
    found_R[order[: high + 1]] += 0.5 * (ordered[high + 1] - ordered[high])
    return found_R


def _median(values_R: Floats) -> float:
    """The upper median of what is known."""
    ordered = np.sort(values_R[~np.isnan(values_R)])
    return float(ordered[len(ordered) // 2]) if ordered.size else math.nan
