"""Timing a call until its time is known well enough, or the time given for that is spent.

What is told is the lower quartile of the times, the median of their quieter half. Whatever else runs on a machine
only ever adds to the time of a call, by a timeslice of some milliseconds here and there, and with two threads more
often, as a call waits for the later one. So the slower half says what the neighbours did; the fastest value alone
would say how lucky one call was with its caches (Chen & Revels 2016, "Robust benchmarking in noisy environments").
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# A reading of the clock costs about 50 ns, so calls are timed in groups that take at least this long.
GROUP_SECONDS = 2e-4
# Quartiles of fewer values say little.
FEWEST_GROUPS = 5
# Half of the values within 5 % of the median either way; tighter bounds are seldom met on a shared machine.
STEADY_SPREAD = 0.1
NUM_WINDOWS = 4
MOST_CALLS_A_GROUP = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """What was found of one call.

    Args:
        seconds: of one call, undisturbed: see :func:`quiet_seconds`.
        spread: distance between the quartiles, relative to the median; 0 for a single value.
        num_calls: that were timed.
    """

    seconds: float
    spread: float
    num_calls: int


def time_until_steady(
    call: Callable[[], object],
    *,
    max_seconds: float,
    steady_spread: float = STEADY_SPREAD,
    agree: Callable[[bool], bool] = bool,
    now: Callable[[], float] = time.perf_counter,
) -> Timing:
    """Time of an undisturbed call, after a warm-up.

    Calls are timed in up to four windows of equal length; after each it may end, when the spread is small.

    Args:
        call: what to time; it must wait for whatever it starts.
        max_seconds: about how long to go on, > 0. A call longer than that is made twice all the same.
        steady_spread: a spread that is small enough.
        agree: told after each window whether this process has enough, tells whether all have; where several
            processes time together it also makes them begin each window at once.
        now: a clock in seconds.

    >>> ticks = iter(range(1000))
    >>> time_until_steady(lambda: None, max_seconds=8.0, now=lambda: float(next(ticks)))
    Timing(seconds=1.0, spread=0.0, num_calls=1)
    """
    began = started = now()
    call()
    once = now() - began
    if once < max_seconds:  # the first call also sets things up
        began = now()
        call()
        once = now() - began
    calls_a_group = max(1, min(MOST_CALLS_A_GROUP, int(GROUP_SECONDS / max(once, 1e-9))))
    found: list[float] = []
    for window in range(NUM_WINDOWS):
        if window == 0:
            agree(False)
        end = now() + max_seconds / NUM_WINDOWS
        while not found or now() < end:
            began = now()
            for _ in range(calls_a_group):
                call()
            found.append((now() - began) / calls_a_group)
        steady = len(found) >= FEWEST_GROUPS and spread_of(found) <= steady_spread
        if agree(steady or now() - started >= max_seconds):
            break
    return Timing(seconds=quiet_seconds(found), spread=spread_of(found), num_calls=len(found) * calls_a_group)


def quiet_seconds(values: Sequence[float]) -> float:
    """The lower quartile of some times: what contention added to fewer than three in four of them is left out.

    Args:
        values: one or more.

    >>> quiet_seconds([1.0, 1.0, 2.0, 8.0, 9.0])
    1.0
    """
    if len(values) < 2:
        return values[0]
    return statistics.quantiles(values, n=4, method="inclusive")[0]


def spread_of(values: Sequence[float]) -> float:
    """Distance between the quartiles, relative to the median; 0 for a single value.

    >>> spread_of([1.0, 2.0, 2.0, 2.0, 9.0])
    0.0
    """
    if len(values) < 2:
        return 0.0
    first, median, third = statistics.quantiles(values, n=4, method="inclusive")
    return (third - first) / median if median > 0 else 0.0
