"""How fast a run goes, against itself: lasting losses of throughput, and waiting for data."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from statistics import median

from leptonai.operations.watch.finding import CurveFinding

BLOCK_SECONDS = 20.0
BLOCK_EVENTS = 5
"""Steps are summed up over at least so long and so many reports: one block is one opinion."""
MOST_BLOCKS = 60
LEAST_BLOCKS = 6
"""Blocks that must have been seen before one is compared with them."""
LASTING_BLOCKS = 3
"""In a row: a minute at least, so that an evaluation, a checkpoint or a neighbour's burst is no news."""
LEAST_LOSS = math.log(1.10)
STALL_SHARE = 0.5
CALM_SHARE = 0.35
"""Of a step spent waiting for data: a stall begins at the one and ends at the other."""


class PaceWatch:
    """Follows seconds a step and where they go.

    >>> watch, found = PaceWatch(), []
    >>> for second in range(0, 600, 1):
    ...     found += watch.update(second * 10, 0.1 if second < 400 else 0.13, {}, at_seconds=float(second))
    >>> [(each.kind, 3900 < each.since_step < 4400, each.over) for each in found]
    [('throughput', True, False)]
    """

    def __init__(self) -> None:
        self._blocks: deque[float] = deque(maxlen=MOST_BLOCKS)
        self.begin_anew()

    def begin_anew(self) -> None:
        """Other workers, another place: what was usual says nothing now."""
        self._blocks.clear()
        self._open: list[tuple[float, float]] = []
        self._block_began, self._first_step = math.nan, 0
        self._late: list[tuple[int, float]] = []
        self._slow_usual: float | None = None
        self._stalls, self._stall_since, self._stalled = 0, 0, False

    def update(
        self, step: int, step_seconds: float, phases: Mapping[str, float], *, at_seconds: float
    ) -> tuple[CurveFinding, ...]:
        """Take in a report: seconds a step since the last, and seconds by phase."""
        if not step_seconds > 0.0:
            return ()
        if math.isnan(self._block_began):
            self._block_began, self._first_step = at_seconds, step
        elif at_seconds < self._block_began:
            # The clock was set back: what was gathered has no length, and waiting for it to catch up has no end.
            self._open, self._block_began, self._first_step = [], at_seconds, step
        total = sum(phases.values())
        self._open.append((math.log(step_seconds), phases.get("input", 0.0) / total if total > 0.0 else 0.0))
        if at_seconds - self._block_began < BLOCK_SECONDS or len(self._open) < BLOCK_EVENTS:
            return ()
        pace = median(each[0] for each in self._open)
        share = sum(each[1] for each in self._open) / len(self._open)
        first = self._first_step
        self._open, self._block_began = [], math.nan
        return (*self._throughput(first, pace), *self._stall(first, share))

    def _throughput(self, first: int, pace: float) -> tuple[CurveFinding, ...]:
        if self._slow_usual is not None:
            if pace > self._slow_usual + 0.5 * LEAST_LOSS:
                return ()
            message = "the run is as fast as before again"
            self._slow_usual = None
            self._late = []
            return (CurveFinding(kind="throughput", since_step=first, message=message, over=True),)
        if (
            len(self._blocks) < LEAST_BLOCKS or pace <= self._limit()
        ):  # what was late for a moment is no measure
            self._blocks.append(pace)
            self._late = []
            return ()
        self._late.append((first, pace))
        if len(self._late) < LASTING_BLOCKS:
            return ()
        usual, now = math.exp(median(self._blocks)), math.exp(median(each for _, each in self._late))
        self._slow_usual = math.log(usual)
        message = f"a step takes {now:.3g} s since step {self._late[0][0]}, before {usual:.3g} s"
        evidence = f"{len(self._late)} stretches in a row were slower than all {len(self._blocks)} before"
        return (
            CurveFinding(
                kind="throughput", since_step=self._late[0][0], message=message, evidence=(evidence,)
            ),
        )

    def _limit(self) -> float:
        """Slower than ever before, by a tenth at least, and by more where the run was never steady."""
        middle = median(self._blocks)
        spread = 1.4826 * median(abs(each - middle) for each in self._blocks)
        return max(max(self._blocks), middle + max(LEAST_LOSS, 4.0 * spread))

    def _stall(self, first: int, share: float) -> tuple[CurveFinding, ...]:
        if self._stalled:
            if share > CALM_SHARE:
                return ()
            self._stalled, self._stalls = False, 0
            message = "the run no longer waits for data"
            return (CurveFinding(kind="data_stall", since_step=first, message=message, over=True),)
        self._stall_since = first if self._stalls == 0 else self._stall_since
        self._stalls = self._stalls + 1 if share >= STALL_SHARE else 0
        if self._stalls < LASTING_BLOCKS:
            return ()
        self._stalled = True
        message = f"the run waits for data {share:.0%} of its time since step {self._stall_since}"
        return (
            CurveFinding(
                kind="data_stall", since_step=self._stall_since, message=message, action="check_job",
                evidence=("the phase `input` of the workers, against all phases",),
            ),
        )  # fmt: skip
