"""One series watched: from its samples to an alarm when it becomes unusual, and to its end."""

from __future__ import annotations

import math

from leptonai.operations.alarms import Alarm
from leptonai.operations.detect.counters import CounterRate
from leptonai.operations.detect.explain import Recent, explain
from leptonai.operations.detect.policy import AlarmWatch, Policy
from leptonai.operations.detect.streaming import StreamingDetector
from leptonai.operations.series import Series

STEP_SECONDS = 10.0
"""A detector sees means over so long: one odd second calls nobody, and a series costs a tenth."""


class SeriesWatch:
    """Samples of one series in, alarms out; 84 KB, bounded.

    Args:
        series: named in the alarms.
        is_counter: it only grows, so its rate is watched.
        policy: when to call a person.

    >>> watch = SeriesWatch(Series.of("queue_depth", node="a"), is_counter=False, policy=Policy())
    >>> found = [watch.update(5.0 + at % 3 + (60.0 if at > 8000 else 0.0), at_seconds=float(at)) for at in range(8100)]
    >>> [(alarm.kind, alarm.subject.kind, abs(alarm.since_seconds - 8000) < 30) for alarm in found if alarm][:1]
    [('anomaly', 'series', True)]
    """

    def __init__(self, series: Series, *, is_counter: bool, policy: Policy) -> None:
        self.series = series
        self._name = repr(series)
        self._rate = CounterRate() if is_counter else None
        self._detector, self._watch, self._recent = StreamingDetector(), AlarmWatch(policy), Recent()
        self._step, self._sum, self._num = -1, 0.0, 0

    def update(self, value: float, *, at_seconds: float) -> Alarm | None:
        """Take in one sample; times go forward. An alarm where a call begins, grows stronger or ends."""
        if self._rate is not None:
            value = self._rate.update(value, at_seconds=at_seconds)
        step = int(at_seconds // STEP_SECONDS)
        found = self._end_step() if step > self._step and self._num else None
        self._step = max(self._step, step)
        if math.isfinite(value):
            self._sum, self._num = self._sum + value, self._num + 1
        return found

    def _end_step(self) -> Alarm | None:
        at_seconds, value = (self._step + 1) * STEP_SECONDS, self._sum / self._num
        self._sum, self._num = 0.0, 0
        self._recent.add(value, at_seconds=at_seconds)
        score = self._detector.update(value, at_seconds=at_seconds)
        verdict = self._watch.update(score, at_seconds=at_seconds)
        if not (verdict.calls or verdict.phase == "over"):
            return None
        times, values = self._recent.arrays()
        unit = "/s" if self._rate is not None else ""
        return explain(verdict, times, values, series=self._name, unit=unit, run_id=self.series.get("run_id"))
