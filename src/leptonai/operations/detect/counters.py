"""Counters as rates: a counter only grows, until its process starts again and it falls to nothing."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from leptonai.core.errors import InputError

COUNTER_SUFFIXES = ("_total", "_count", "_sum", "_bucket")
"""Of metric names that are counters by the naming rules of OpenMetrics 1.0."""
MAX_GAP_PERIODS = 10.0
"""A mean over a longer gap would hide what happened in it."""
MIN_SAMPLES_TO_TELL = 20
MAX_RESET_SHARE = 0.05
"""A counter that falls in more of its steps is none."""


@dataclass(slots=True)
class CounterRate:
    """Turns a counter, sample by sample, into its rate a second.

    A fall is a reset: the counter has then grown from 0 to its new value, at least. NaN means that the rate is not
    known: at the first sample, after a gap longer than ten periods, and where time does not go on.

    >>> rate = CounterRate()
    >>> [rate.update(value, at_seconds=at) for at, value in ((0, 10.0), (10, 30.0), (20, 5.0), (10_000, 9.0))]
    [nan, 2.0, 0.5, nan]
    """

    _value: float = math.nan
    _at_seconds: float = math.nan
    _period_seconds: float = math.nan
    num_resets: int = 0
    """So far: a restart of what is counted, often worth a look of its own."""

    def update(self, value: float, *, at_seconds: float) -> float:
        """Take in one sample of the counter; its rate since the one before, or NaN."""
        if not math.isfinite(value):
            return math.nan
        if math.isnan(self._value):
            self._value, self._at_seconds = value, at_seconds
            return math.nan
        elapsed = at_seconds - self._at_seconds
        if not elapsed > 0.0:
            return math.nan
        reset = value < self._value
        grown = value if reset else value - self._value
        self.num_resets += reset
        self._value, self._at_seconds = value, at_seconds
        period = self._period_seconds
        if math.isnan(period) or elapsed < period:
            self._period_seconds = elapsed
        elif elapsed > MAX_GAP_PERIODS * period:
            # Were the period simply longer from now on, the next steps must find that out.
            self._period_seconds = min(elapsed, 2.0 * period)
            return math.nan
        else:
            self._period_seconds += 0.1 * (elapsed - period)
        return max(0.0, grown) / elapsed


def rates(at_seconds: Sequence[float], values: Sequence[float]) -> list[float]:
    """The rate at each sample of a counter, as :class:`CounterRate` gives it.

    Raises:
        InputError: the two differ in length.

    >>> rates([0.0, 1.0, 2.0], [5.0, 6.0, 8.0])
    [nan, 1.0, 2.0]
    """
    if len(at_seconds) != len(values):
        raise InputError(f"expected a time for each value, found {len(at_seconds)} for {len(values)}")
    rate = CounterRate()
    return [rate.update(value, at_seconds=at) for at, value in zip(at_seconds, values, strict=True)]


def is_counter_name(name: str) -> bool:
    """Whether a metric's name says that it is a counter.

    >>> is_counter_name("http_requests_total"), is_counter_name("temperature_celsius")
    (True, False)
    """
    return name.endswith(COUNTER_SUFFIXES)


def looks_like_counter(values: Sequence[float]) -> bool:
    """Whether values behave as a counter's: never negative, growing, falling hardly ever and then far down.

    At least 20 values are needed to tell; fewer say no.

    >>> looks_like_counter([float(3 * k) for k in range(30)]), looks_like_counter([1.0, 0.0] * 20)
    (True, False)
    """
    present = [value for value in values if math.isfinite(value)]
    if len(present) < MIN_SAMPLES_TO_TELL or min(present) < 0.0 or max(present) <= present[0]:
        return False
    falls = [(before, after) for before, after in itertools.pairwise(present) if after < before]
    far_down = all(after < 0.5 * before for before, after in falls)
    return far_down and len(falls) <= MAX_RESET_SHARE * len(present)
