"""An alarm on one series in words: which evidence, since when, how it looked before and how it looks now."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import ArrayLike, NDArray

from leptonai.core.errors import InputError
from leptonai.operations.alarms import Alarm, Evidence, Severity, Subject
from leptonai.operations.detect.policy import Verdict

DAY_SECONDS = 86_400.0
HALF_HOUR_SECONDS = 1_800.0
"""The usual value at this hour is that of half an hour before and after, on earlier days."""
MIN_DAYS = 2
"""Earlier days with samples at this hour before it is called usual."""
MIN_BEFORE = 10
"""Samples before a change from which their spread can be told."""
MIN_SPREAD_SAMPLES = 8
"""Samples after a change from which a change of spread can be told."""
RECENT_SAMPLES = 4096
"""Kept of a series for its explanations: two weeks at one in five minutes; 64 KB."""
SAMPLES_BEFORE = 100
"""So long before the first odd point a change may have begun: a slow drift is noticed late."""
RELATIVE_FLOOR = 1e-9
"""Variances below this share of the window's are rounding."""

REASONS = {
    "level": "its level is unusual",
    "spread": "it moves more or less than usual",
    "shape": "its recent course matches none seen before",
    "context": "this value after those before it has not been seen so far",
    "seasonal": "it is unusual for this time of the day or week",
    "gap": "samples were missing",
}
"""Sentences for the detector's words; an unknown word is shown as it is."""

Floats = NDArray[np.float64]


@dataclass(slots=True)
class Recent:
    """The last samples of one series, for explanations; bounded.

    >>> recent = Recent(capacity=2)
    >>> for k in range(3):
    ...     recent.add(float(k), at_seconds=60.0 * k)
    >>> recent.arrays()[1].tolist()
    [1.0, 2.0]
    """

    capacity: int = RECENT_SAMPLES
    _samples: deque[tuple[float, float]] = field(init=False)

    def __post_init__(self) -> None:
        self._samples = deque(maxlen=self.capacity)

    def add(self, value: float, *, at_seconds: float) -> None:
        """Keep one sample; the oldest goes when it is full."""
        self._samples.append((at_seconds, value))

    def arrays(self) -> tuple[Floats, Floats]:
        """Times and values, the oldest first."""
        pairs = np.array(self._samples, dtype=np.float64).reshape(-1, 2)
        return pairs[:, 0].copy(), pairs[:, 1].copy()


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """How a series looked before a change and how it looks since.

    Args:
        since_seconds: when the change began, by maximum likelihood.
        before: the median before it; NaN: there was no before.
        low, high: between which nine in ten values lay before it.
        now: the median since.
        last: the newest value.
        usual_now: the median at this hour on earlier days; NaN: fewer than two such days are known.
        moves: ``level``: the change is one of level; ``spread``: of how much it varies.
    """

    since_seconds: float
    before: float
    low: float
    high: float
    now: float
    last: float
    usual_now: float
    moves: str


def picture(at_seconds: ArrayLike, values: ArrayLike, *, not_before_seconds: float = -math.inf) -> Picture:
    """Find the change in a window of samples that ends now.

    Args:
        at_seconds: times, seconds since 1970, going on, shape (N,).
        values: NaN and infinite ones are left out, shape (N,).
        not_before_seconds: the change is not sought before this time.

    Raises:
        InputError: the shapes differ, or nothing finite is there.

    >>> seen = picture([60.0 * k for k in range(100)], [5.0, 5.2] * 40 + [9.0, 9.1] * 10)
    >>> seen.since_seconds, seen.before, seen.now
    (4800.0, 5.1, 9.05)
    """
    at, value = np.asarray(at_seconds, np.float64), np.asarray(values, np.float64)
    if at.shape != value.shape or at.ndim != 1:
        raise InputError(f"expected as many times as values, found shapes {at.shape} and {value.shape}")
    present = np.isfinite(value)
    at, value = at[present], value[present]
    if not len(value):
        raise InputError("expected at least one finite value, found none")
    first = int(np.searchsorted(at, not_before_seconds))
    place, moves = _change(_without_day(at, value), first)
    before, since = value[:place], value[place:]
    low, high = np.quantile(before, [0.05, 0.95]) if len(before) else (math.nan, math.nan)
    return Picture(
        since_seconds=float(at[place]),
        before=float(np.median(before)) if len(before) else math.nan,
        low=float(low),
        high=float(high),
        now=float(np.median(since)),
        last=float(value[-1]),
        usual_now=_usual(at, value),
        moves=moves,
    )


def _without_day(at: Floats, value: Floats) -> Floats:
    """Distances from the median of the same half hour, where enough days are known to have one."""
    if at[-1] - at[0] < (MIN_DAYS + 1) * DAY_SECONDS:
        return value
    slot = (at % DAY_SECONDS // HALF_HOUR_SECONDS).astype(np.int64)
    away = value.copy()
    for each in np.unique(slot):
        chosen = slot == each
        away[chosen] -= np.median(value[chosen])
    return away


def _change(value: Floats, first: int) -> tuple[int, str]:
    """Where the normal likelihood of two parts beats that of one the most, and in what they differ."""
    num = len(value)
    places = np.arange(max(MIN_BEFORE, first), num)
    if not len(places):
        return num - 1, "level"
    centred = value - np.median(value)
    sums, squares = np.cumsum(centred), np.cumsum(centred**2)
    before, after = places.astype(np.float64), (num - places).astype(np.float64)
    mean_before = sums[places - 1] / before
    mean_after = (sums[-1] - sums[places - 1]) / after
    floor = max(float(centred.var()) * RELATIVE_FLOOR, 1e-300)
    spread_before = np.maximum(squares[places - 1] / before - mean_before**2, floor)
    spread_after = np.maximum((squares[-1] - squares[places - 1]) / after - mean_after**2, floor)
    pooled = (before * spread_before + after * spread_after) / num
    whole = max(float(centred.var()), floor)
    level = 0.5 * num * np.log(whole / pooled)
    both = 0.5 * (num * np.log(whole) - before * np.log(spread_before) - after * np.log(spread_after))
    spread = np.where(after >= MIN_SPREAD_SAMPLES, both - level, 0.0)
    # The second variance is one parameter more; half a logarithm of the sample is its price (Schwarz 1978).
    gain = level + np.maximum(0.0, spread - 0.5 * math.log(num))
    best = int(gain.argmax())
    return int(places[best]), "spread" if spread[best] > level[best] else "level"


def _usual(at: Floats, value: Floats) -> float:
    back = at[-1] - at
    away = (back + HALF_HOUR_SECONDS) % DAY_SECONDS
    earlier = (away <= 2 * HALF_HOUR_SECONDS) & (back > DAY_SECONDS / 2)
    days = np.unique(((back[earlier] + HALF_HOUR_SECONDS) // DAY_SECONDS).astype(np.int64))
    return float(np.median(value[earlier])) if len(days) >= MIN_DAYS else math.nan


def explain(
    verdict: Verdict,
    at_seconds: ArrayLike,
    values: ArrayLike,
    *,
    series: str,
    unit: str = "",
    subject: Subject | None = None,
    severity: Severity = "warning",
    run_id: str = "",
) -> Alarm:
    """The alarm for a person, from what the policy said and the series' recent samples.

    Args:
        verdict: of phase ``opened``, ``stronger``, ``still`` or ``over``.
        at_seconds: times of the recent samples, the last being the verdict's; shape (N,).
        values: those samples; shape (N,).
        series: the name to show.
        unit: of the values, such as ``"ms"``.
        subject: what the alarm is about; None: the series itself.
        severity: of the alarm.
        run_id: the run it befell, where there is one.

    Raises:
        InputError: the verdict is quiet, or see :func:`picture`.
    """
    if verdict.phase == "quiet":
        raise InputError("a quiet verdict is no alarm, so there is nothing to explain")
    at, value = np.asarray(at_seconds, np.float64), np.asarray(values, np.float64)
    seen = picture(at, value, not_before_seconds=_earliest(verdict, at))
    over = verdict.phase == "over"
    reason = REASONS.get(verdict.reason, verdict.reason)
    since = min(verdict.at_seconds, _since(verdict, seen))
    message = f"{series} is as usual again" if over else f"{series} is unusual: {_now(seen, unit)}"
    p_value = 10.0**-verdict.strength if verdict.strength > 0.0 else None
    found = [
        Evidence(
            what=f"{series}: {reason}" if reason else f"{series}: it is unusual",
            value=_finite(seen.last), expected=_finite(seen.before), unit=unit, p_value=p_value, series=series,
        )
    ]  # fmt: skip
    if math.isfinite(seen.before):
        found.append(
            Evidence(
                what=f"before, nine in ten values lay between {_number(seen.low, unit)} and "
                f"{_number(seen.high, unit)}, half of them below {_number(seen.before, unit)}",
                value=_finite(seen.now), expected=seen.before, unit=unit, series=series,
            )
        )  # fmt: skip
    if math.isfinite(seen.usual_now):
        found.append(
            Evidence(
                what=f"usual at this hour is {_number(seen.usual_now, unit)}",
                value=_finite(seen.last), expected=seen.usual_now, unit=unit, series=series,
            )
        )  # fmt: skip
    return Alarm(
        kind="anomaly",
        subject=subject or Subject("series", series),
        severity=severity,
        at_seconds=verdict.at_seconds,
        since_seconds=since,
        message=message,
        evidence=tuple(found),
        run_id=run_id,
        over=over,
    )


def _earliest(verdict: Verdict, at: Floats) -> float:
    """A change long before the policy noticed is another matter."""
    if math.isnan(verdict.since_seconds) or len(at) < 2:
        return -math.inf
    return verdict.since_seconds - SAMPLES_BEFORE * float(np.median(np.diff(at)))


def _since(verdict: Verdict, seen: Picture) -> float:
    """The likeliest begin, at the latest the first odd point."""
    if math.isnan(verdict.since_seconds):
        return seen.since_seconds
    return (
        min(seen.since_seconds, verdict.since_seconds) if verdict.phase != "over" else verdict.since_seconds
    )


def _now(seen: Picture, unit: str) -> str:
    if not math.isfinite(seen.before):
        return f"it is {_number(seen.last, unit)}, and there is little to compare with"
    usual = f", usual at this hour {_number(seen.usual_now, unit)}" if math.isfinite(seen.usual_now) else ""
    if seen.moves == "spread":
        return f"it varies differently; {_number(seen.last, unit)} now, {_number(seen.before, unit)} before{usual}"
    return f"{_number(seen.now, unit)} now, {_number(seen.before, unit)} before{usual}"


def _number(value: float, unit: str) -> str:
    """
    >>> _number(1234.5678, "ms")
    '1235 ms'
    """
    text = f"{value:.4g}" if abs(value) < 1e5 else f"{value:.3e}"
    return f"{text} {unit}".strip()


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
