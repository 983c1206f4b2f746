"""The public checks of detectors: a sound one passes, and each broken one fails on the check meant for it."""

from __future__ import annotations

import bisect
import math
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest

from leptonai.core.errors import InputError
from leptonai.operations.detect.score import Detector, Score
from leptonai.operations.detect.streaming import StreamingDetector
from leptonai.testing.detectors import Report, check_detector


class Ranked:
    """A small sound detector: distance from a moving mean, ranked in its own past, exponential beyond it."""

    capacity = 1000

    def __init__(self) -> None:
        self.mean = math.nan
        self.order: deque[float] = deque()
        self.ranks: list[float] = []

    def update(self, value: float, *, at_seconds: float) -> Score:
        if not math.isfinite(value) or abs(value) > 1e200:
            return Score(None)
        if math.isnan(self.mean):
            self.mean = value
        away = abs(value - self.mean)
        self.mean += 0.3 * (value - self.mean)
        score = Score(self.p_value(away), "level") if len(self.ranks) >= 50 else Score(None)
        self.order.append(away)
        bisect.insort(self.ranks, away)
        if len(self.order) > self.capacity:
            del self.ranks[bisect.bisect_left(self.ranks, self.order.popleft())]
        return score

    def p_value(self, away: float) -> float:
        num = len(self.ranks)
        tail = max(4, num // 50)
        if away <= 1e-9 * abs(self.mean):
            return 1.0
        above = num - bisect.bisect_left(self.ranks, away * (1 - 1e-9))
        if above >= tail:
            return (above + 1) / (num + 1)
        start = self.ranks[-tail]
        excess = sum(each - start for each in self.ranks[-tail:]) / tail
        return max(1e-30, tail / num * math.exp(-(away - start) / excess)) if excess > 0 else 1e-30


_TAPE: list[float] = []
_CHANCE = np.random.default_rng(3)


class SharesMemory(Ranked):
    """Looks at what an earlier detector saw later: its scores change when the series is cut."""

    def __init__(self) -> None:
        super().__init__()
        self.place = 0

    def update(self, value: float, *, at_seconds: float) -> Score:
        ahead = _TAPE[self.place + 5] if self.place + 5 < len(_TAPE) else value
        _TAPE[self.place : self.place + 1] = [value]
        self.place += 1
        return super().update(0.5 * value + 0.5 * ahead, at_seconds=at_seconds)


class KeepsAll(Ranked):
    """Never forgets."""

    capacity = 10**9


class CriesWolf(Ranked):
    """Its p-values are five times too small."""

    def p_value(self, away: float) -> float:
        return super().p_value(away) / 8.0


class KnowsAtOnce(Ranked):
    def update(self, value: float, *, at_seconds: float) -> Score:
        score = super().update(value, at_seconds=at_seconds)
        return Score(0.5) if score.p_value is None and math.isfinite(value) else score


class DiesOnGaps(Ranked):
    def update(self, value: float, *, at_seconds: float) -> Score:
        if math.isnan(value):
            raise ValueError("no NaN, please")
        return super().update(value, at_seconds=at_seconds)


class NeedsAForwardClock(Ranked):
    last = -math.inf

    def update(self, value: float, *, at_seconds: float) -> Score:
        assert at_seconds >= self.last
        self.last = at_seconds
        return super().update(value, at_seconds=at_seconds)


class FixedScale(Ranked):
    def p_value(self, away: float) -> float:
        return math.exp(-min(60.0, 0.5 * away * away))


class SeesNothing(Ranked):
    def p_value(self, away: float) -> float:
        return 0.5


class ZeroChance(Ranked):
    def p_value(self, away: float) -> float:
        return max(0.0, 0.9 - away)


class Silent:
    def update(self, value: float, *, at_seconds: float) -> Score:
        return Score(None)


@dataclass
class Mutable:
    """Not even a Score: it is changed after it was given."""

    p_value: float | None

    @property
    def strength(self) -> float:
        return 0.0 if self.p_value is None else -math.log10(self.p_value)


class RewritesHistory(Ranked):
    last: Mutable | None = None

    def update(self, value: float, *, at_seconds: float) -> Score:
        score = super().update(value, at_seconds=at_seconds)
        if self.last is not None and self.last.p_value is not None and score.p_value is not None:
            self.last.p_value = min(self.last.p_value, score.p_value)
        self.last = Mutable(score.p_value)
        return self.last  # type: ignore[return-value]


class ForgetsOnRestart(Ranked):
    def to_bytes(self) -> bytes:
        return struct.pack("<d", self.mean)

    @classmethod
    def from_bytes(cls, kept: bytes) -> ForgetsOnRestart:
        made = cls()
        (made.mean,) = struct.unpack("<d", kept)
        return made


def _report(make: Callable[[], Detector], *only: str) -> Report:
    _TAPE.clear()
    return check_detector(make, only=only)


def test_a_sound_detector_passes() -> None:
    report = _report(Ranked)
    report.require()
    assert report.failed == ()
    assert len(report.checks) >= 15
    assert "microseconds" in str(report)


@pytest.mark.parametrize(
    ("broken", "check"),
    [
        (SharesMemory, "causal"),
        (KeepsAll, "memory"),
        (CriesWolf, "calibrated_white"),
        (KnowsAtOnce, "warm_up"),
        (Silent, "warm_up"),
        (DiesOnGaps, "gaps"),
        (NeedsAForwardClock, "clock_back"),
        (FixedScale, "affine"),
        (SeesNothing, "sees"),
        (ZeroChance, "valid"),
        (RewritesHistory, "settled"),
        (ForgetsOnRestart, "restart"),
    ],
)
def test_a_broken_one_fails_on_its_check(broken: Callable[[], Detector], check: str) -> None:
    report = _report(broken, check)
    assert report.failed == (check,), str(report)
    with pytest.raises(AssertionError, match=check):
        report.require()


def test_unseeded_chance_is_not_repeatable() -> None:
    class Random(Ranked):
        def p_value(self, away: float) -> float:
            return float(min(1.0, super().p_value(away) * _CHANCE.uniform(0.9, 1.1)))

    assert _report(Random, "repeatable").failed == ("repeatable",)


def test_a_slow_one_fails_where_a_limit_is_given() -> None:
    assert check_detector(Silent, max_microseconds=1e-3, only=("speed",)).failed == ("speed",)
    assert check_detector(Ranked, max_bytes=1000, only=("memory",)).failed == ("memory",)


def test_the_own_detector_passes() -> None:
    check_detector(StreamingDetector).require()


def test_an_unknown_check_is_refused() -> None:
    with pytest.raises(InputError, match="no check named"):
        check_detector(Silent, only=("nonsense",))
