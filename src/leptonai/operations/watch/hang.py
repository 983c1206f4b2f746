"""Whether a gang hangs, which rank holds it up, and where: a pure function of what the ranks say of themselves."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from leptonai.core.errors import InputError

FLOOR_SECONDS = 5.0
"""No deadline is shorter: so long may a busy machine, a garbage collection or a slow disk take."""
STEP_FACTOR = 3.0
"""Deadline over the 99th percentile of the step times."""
NUM_STEP_TIMES = 512
"""Step times that the percentile is of: enough for its highest five to be left out, few enough to follow a run."""
MIN_STEP_TIMES = 3
"""Before so many steps were timed, nothing is known of what is long: compiling and loading take their time."""
STOPPED_SECONDS = 1.0
"""A process that is stopped by a signal so long was not just being looked at."""

Section = Literal["starting", "computing", "exchanging", "pausing"]
"""``pausing``: a checkpoint, an evaluation, an answer awaited: no deadline."""
_DOING: Mapping[Section, str] = {
    "starting": "starting up", "computing": "computing", "exchanging": "in the exchange", "pausing": "pausing",
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class RankProgress:
    """Where one rank is.

    Args:
        rank: which.
        step: whole steps done.
        section: what it does.
        since_seconds: since when (monotonic).
        collective: the exchange it is in or comes to next, such as ``all-reduce``; empty: not known.
        sequence: the number of that exchange; ranks of one gang count alike. -1: not known.
        stopped: its process is stopped by a signal.
    """

    rank: int
    step: int
    section: Section
    since_seconds: float
    collective: str = ""
    sequence: int = -1
    stopped: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class HangFinding:
    """A rank holds the gang up, or (``over``) no longer does.

    Args:
        rank: which.
        step: whole steps it has done.
        section: what it does.
        collective: the exchange where the others wait for it, in words; empty: they do not.
        waiting: the ranks that wait for it.
        since_seconds: monotonic, since when it makes no progress.
        deadline_seconds: how long that may last.
        reason: one sentence.
        over: it goes on.
    """

    rank: int
    step: int
    section: Section
    collective: str
    waiting: tuple[int, ...]
    since_seconds: float
    deadline_seconds: float
    reason: str
    over: bool = False


class HangWatch:
    """Follows the progress of a gang.

    Args:
        floor_seconds: shortest deadline.
        factor: deadline over the 99th percentile of the step times.

    Raises:
        InputError: one of them is not above 0.

    >>> watch = HangWatch()
    >>> for step in range(9):
    ...     gang = [RankProgress(rank=r, step=step, section="computing", since_seconds=0.1 * step) for r in (0, 1)]
    ...     assert watch.update(gang, now_seconds=0.1 * step) is None
    >>> lost = RankProgress(rank=1, step=8, section="computing", since_seconds=0.8)
    >>> waits = RankProgress(rank=0, step=8, section="exchanging", since_seconds=0.9, collective="all-reduce")
    >>> print(watch.update([waits, lost], now_seconds=5.9).reason)
    rank 1 has made no progress for 5.1 s while computing step 9; rank 0 waits for it in all-reduce
    """

    def __init__(self, *, floor_seconds: float = FLOOR_SECONDS, factor: float = STEP_FACTOR) -> None:
        if not (floor_seconds > 0.0 and factor > 0.0):
            raise InputError(f"expected a floor and a factor above 0, found {floor_seconds} and {factor}")
        self._floor_seconds, self._factor = floor_seconds, factor
        self._moved: dict[int, tuple[int, float]] = {}
        self._seconds: deque[float] = deque(maxlen=NUM_STEP_TIMES)
        self._stopped: dict[int, float] = {}
        self._said: HangFinding | None = None

    @property
    def deadline_seconds(self) -> float:
        """How long a rank may make no progress; infinite until a few steps were timed."""
        if len(self._seconds) < MIN_STEP_TIMES:
            return math.inf
        return max(self._floor_seconds, self._factor * self.p99_step_seconds)

    @property
    def p99_step_seconds(self) -> float:
        """The 99th percentile of the last step times (nearest rank); 0: none was timed."""
        ordered = sorted(self._seconds)
        return ordered[math.ceil(0.99 * len(ordered)) - 1] if ordered else 0.0

    def regrouped(self) -> None:
        """The ranks are given anew; what is known of the pace stays."""
        self._moved.clear()
        self._stopped.clear()
        self._said = None

    def update(self, gang: Sequence[RankProgress], *, now_seconds: float) -> HangFinding | None:
        """Look at all ranks at once, some times a second.

        Returns:
            A finding when a hang begins and, with ``over``, when it has passed; each once.
        """
        self._note_pace(gang, now_seconds)
        self._note_stopped(gang, now_seconds)
        found = self._find(gang, now_seconds)
        before, self._said = self._said, found
        if found is None and before is not None:
            return _over(before)
        if found is not None and (before is None or before.rank != found.rank):
            return found
        return None

    def _note_pace(self, gang: Sequence[RankProgress], now: float) -> None:
        for each in gang:
            step, since = self._moved.setdefault(each.rank, (each.step, now))
            if each.step != step:
                # The first step includes warming up; a step that is counted back was taken again.
                if 0 < step < each.step:
                    self._seconds.append((now - since) / (each.step - step))
                self._moved[each.rank] = (each.step, now)
            elif each.section == "pausing":
                self._moved[each.rank] = (step, now)

    def _note_stopped(self, gang: Sequence[RankProgress], now: float) -> None:
        for each in gang:
            if each.stopped:
                self._stopped.setdefault(each.rank, now)
            else:
                self._stopped.pop(each.rank, None)

    def _find(self, gang: Sequence[RankProgress], now: float) -> HangFinding | None:
        for each in gang:
            since = self._stopped.get(each.rank, math.inf)
            if now - since >= STOPPED_SECONDS:
                return self._finding(
                    each, gang, since, f"rank {each.rank} is stopped (SIGSTOP)", STOPPED_SECONDS
                )
        deadline = self.deadline_seconds
        if not gang or any(each.section in ("pausing", "starting") for each in gang):
            return None
        outside = [each for each in gang if each.section != "exchanging"]
        last = min(outside or gang, key=lambda each: (each.step, each.sequence, each.since_seconds))
        # Who is in the exchange waits for others: only when all are, and none gets out, is it the exchange itself.
        since = last.since_seconds if outside else max(each.since_seconds for each in gang)
        if now - since < deadline:
            return None
        words = f"rank {last.rank} has made no progress for {now - since:.1f} s while {_DOING[last.section]}"
        return self._finding(last, gang, since, f"{words} step {last.step + 1}", deadline)

    def _finding(
        self, last: RankProgress, gang: Sequence[RankProgress], since: float, words: str, deadline: float
    ) -> HangFinding:
        waiting = [each for each in gang if each.section == "exchanging" and each.rank != last.rank]
        where = next((_collective(each) for each in waiting), "")
        if waiting:
            names = ", ".join(str(each.rank) for each in waiting)
            words += f"; {'rank' if len(waiting) == 1 else 'ranks'} {names} "
            words += f"{'waits' if len(waiting) == 1 else 'wait'} for it in {where}"
        return HangFinding(
            rank=last.rank, step=last.step, section=last.section, collective=where or _collective(last, empty=True),
            waiting=tuple(each.rank for each in waiting), since_seconds=since, deadline_seconds=deadline,
            reason=words,
        )  # fmt: skip


def _collective(each: RankProgress, *, empty: bool = False) -> str:
    if empty and each.section != "exchanging":
        return ""
    name = each.collective or f"the exchange of step {each.step + 1}"
    return f"{name} {each.sequence}" if each.sequence >= 0 else name


def _over(before: HangFinding) -> HangFinding:
    return HangFinding(
        rank=before.rank, step=before.step, section=before.section, collective=before.collective,
        waiting=before.waiting, since_seconds=before.since_seconds, deadline_seconds=before.deadline_seconds,
        reason=f"rank {before.rank} goes on", over=True,
    )  # fmt: skip
