"""When to call a person: from the evidence of a detector to alarms that open, last and end.

A score says how strange one point is. This second layer decides what is worth an alarm, aiming at a stated rate of
false ones: it asks for plain oddity of a point or for lesser oddity that lasts (Page's cumulative sum of the
evidence), keeps one alarm open instead of ringing at each point, and ends it only after a while of quiet. It is
never silent for long: an open alarm rings again when the evidence becomes plainly stronger.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

from leptonai.core.errors import InputError
from leptonai.operations.detect.score import Score

Phase = Literal["quiet", "opened", "stronger", "still", "over"]
"""``opened`` and ``stronger`` call a person; ``over`` takes the call back; the others are silent."""

DAY_SECONDS = 86_400.0
PERIOD_MEMORY_SAMPLES = 100
"""Over which the usual time between two samples is averaged."""
LONGEST_GAP_PERIODS = 10.0
"""A longer pause is an outage, not the period."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How readily one series calls a person.

    Args:
        days_between_false_alarms: what a well-calibrated, healthy series should at least reach on average, > 0.
        alone_strength: by how much (``-log10`` p) one odd point must exceed the level when neither of the two
            points before it was odd as well.
        repeat_strength: by how much evidence must exceed the strongest so far for an open alarm to ring again, and
            for a new alarm within ``silence_seconds`` of the last.
        quiet_strength: a point below it is quiet; what exceeds it is summed up while it lasts, and what is short of
            it is taken off the sum again.
        lasting_levels: so many times the level must the sum reach to be an alarm; many oddities in a row are
            little evidence where a series has a memory, hence the large number.
        most_strength: of one point that counts in the sum.
        quiet_samples: an alarm ends after so many quiet points in a row.
        silence_seconds: after an alarm has ended, only plainly stronger evidence opens another for so long.

    The defaults were chosen on generated series of other seeds than those of ``benchmarks.operator_alarms``, and on
    none of the recorded ones.
    """

    days_between_false_alarms: float = 100.0
    alone_strength: float = 0.4
    repeat_strength: float = 2.0
    quiet_strength: float = 1.3
    lasting_levels: float = 7.5
    most_strength: float = 4.0
    quiet_samples: int = 30
    silence_seconds: float = 600.0

    def __post_init__(self) -> None:
        if not self.days_between_false_alarms > 0.0:
            raise InputError(
                f"expected days_between_false_alarms > 0, found {self.days_between_false_alarms}",
                hint="100 means: a healthy series calls a person about three times a year",
            )
        if self.quiet_samples < 1:
            raise InputError(f"expected quiet_samples of at least 1, found {self.quiet_samples}")
        lowest = min(self.alone_strength, self.repeat_strength, self.lasting_levels, self.silence_seconds)
        if not lowest >= 0.0:
            raise InputError(f"expected no negative setting, found {lowest}")

    def level(self, period_seconds: float) -> float:
        """The strength that samples of this period need.

        >>> Policy(days_between_false_alarms=100.0).level(864.0)
        4.0
        """
        return max(1.0, math.log10(self.days_between_false_alarms * DAY_SECONDS / max(period_seconds, 1e-3)))


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyState:
    """All that is remembered of one series; a few numbers, safe to store and to go on from.

    Times are in seconds since 1970, NaN before the first; ``strengths`` are those of the last two points.
    """

    num_samples: int = 0
    last_seconds: float = math.nan
    period_seconds: float = math.nan
    strengths: tuple[float, float] = (0.0, 0.0)
    lasting: float = 0.0
    odd_since_seconds: float = math.nan
    is_open: bool = False
    since_seconds: float = math.nan
    peak_strength: float = 0.0
    num_quiet: int = 0
    over_seconds: float = -math.inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the policy says of one point.

    Args:
        phase: see :data:`Phase`.
        at_seconds: of the point.
        since_seconds: when the oddity began, where there is an alarm; else NaN.
        strength: ``-log10`` of the strongest p-value of this alarm so far; 0: no alarm.
        reason: the detector's word for the evidence of this point.
    """

    phase: Phase
    at_seconds: float
    since_seconds: float = math.nan
    strength: float = 0.0
    reason: str = ""

    @property
    def calls(self) -> bool:
        """Whether a person should be called now."""
        return self.phase in ("opened", "stronger")


DEFAULT = Policy()


def step(
    state: PolicyState, score: Score, *, at_seconds: float, policy: Policy = DEFAULT
) -> tuple[PolicyState, Verdict]:
    """Take in one score; the new state, and what to do.

    A score without a p-value (too little history, or a gap) is neither odd nor quiet: it changes nothing but time.

    >>> state, phases = PolicyState(), []
    >>> for minute, p in enumerate([0.5, 0.3, 1e-9, 1e-9, 0.5, *[0.4] * 30]):
    ...     state, verdict = step(state, Score(p), at_seconds=60.0 * minute)
    ...     phases.append(verdict.phase)
    >>> phases[1:5], phases[-3:]
    (['quiet', 'opened', 'still', 'still'], ['still', 'over', 'quiet'])
    """
    state = _with_time(state, at_seconds)
    if score.p_value is None:
        return state, _verdict("still" if state.is_open else "quiet", state, score, at_seconds)
    strength = score.strength
    supported = max(min(strength, max(state.strengths)), strength - policy.alone_strength)
    state = _with_strength(state, strength, at_seconds, policy)
    if state.is_open:
        return _while_open(state, score, supported, at_seconds, policy)
    level = policy.level(state.period_seconds)
    if at_seconds - state.over_seconds < policy.silence_seconds:
        plain = supported >= max(level, state.peak_strength + policy.repeat_strength)
    else:
        plain = supported >= level or state.lasting >= policy.lasting_levels * level
    if math.isnan(state.period_seconds) or not plain:
        return state, _verdict("quiet", state, score, at_seconds)
    state = replace(
        state,
        is_open=True,
        since_seconds=state.odd_since_seconds,
        peak_strength=max(strength, level),
        num_quiet=0,
    )
    return state, _verdict("opened", state, score, at_seconds)


def _with_strength(state: PolicyState, strength: float, at_seconds: float, policy: Policy) -> PolicyState:
    """The state with the evidence of a point summed up; oddity began when the sum last left zero."""
    lasting = max(0.0, state.lasting + min(strength, policy.most_strength) - policy.quiet_strength)
    odd_since = state.odd_since_seconds
    if lasting == 0.0:
        odd_since = math.nan
    elif math.isnan(odd_since):
        odd_since = at_seconds
    strengths = (state.strengths[1], strength)
    return replace(state, strengths=strengths, lasting=lasting, odd_since_seconds=odd_since)


def _while_open(
    state: PolicyState, score: Score, supported: float, at_seconds: float, policy: Policy
) -> tuple[PolicyState, Verdict]:
    if supported >= state.peak_strength + policy.repeat_strength:
        state = replace(state, peak_strength=score.strength, num_quiet=0)
        return state, _verdict("stronger", state, score, at_seconds)
    num_quiet = state.num_quiet + 1 if score.strength < policy.quiet_strength else 0
    state = replace(state, num_quiet=num_quiet)
    if num_quiet < policy.quiet_samples:
        return state, _verdict("still", state, score, at_seconds)
    verdict = _verdict("over", state, score, at_seconds)
    ended = replace(state, is_open=False, num_quiet=0, lasting=0.0, odd_since_seconds=math.nan)
    return replace(ended, over_seconds=at_seconds), verdict


def _with_time(state: PolicyState, at_seconds: float) -> PolicyState:
    """The state with its clock and its period brought up to now."""
    gap = at_seconds - state.last_seconds
    if math.isnan(gap):
        return replace(state, num_samples=1, last_seconds=at_seconds)
    if gap <= 0.0:
        return replace(state, num_samples=state.num_samples + 1)
    period = state.period_seconds
    if math.isnan(period):
        period = gap
    else:
        rate = 1.0 / min(state.num_samples, PERIOD_MEMORY_SAMPLES)
        period += rate * (min(gap, LONGEST_GAP_PERIODS * period) - period)
    return replace(state, num_samples=state.num_samples + 1, last_seconds=at_seconds, period_seconds=period)


def _verdict(phase: Phase, state: PolicyState, score: Score, at_seconds: float) -> Verdict:
    if phase == "quiet":
        return Verdict(phase=phase, at_seconds=at_seconds)
    return Verdict(
        phase=phase,
        at_seconds=at_seconds,
        since_seconds=state.since_seconds,
        strength=state.peak_strength,
        reason=score.reason,
    )


@dataclass(slots=True)
class AlarmWatch:
    """A policy with the state of one series, for callers that do not keep it themselves.

    >>> watch = AlarmWatch()
    >>> watch.update(Score(None), at_seconds=0.0).phase
    'quiet'
    """

    policy: Policy = DEFAULT
    state: PolicyState = field(default_factory=PolicyState)

    def update(self, score: Score, *, at_seconds: float) -> Verdict:
        """Take in the score of one point; times should not go back."""
        self.state, verdict = step(self.state, score, at_seconds=at_seconds, policy=self.policy)
        return verdict
