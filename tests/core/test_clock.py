from __future__ import annotations

import time

from leptonai.core.clock import Clock, FakeClock, SystemClock


def test_the_fake_clock_moves_only_when_told() -> None:
    clock: Clock = FakeClock(start_seconds=5.0)
    assert (clock.now_seconds(), clock.monotonic_seconds()) == (5.0, 5.0)
    assert isinstance(clock, FakeClock)
    clock.advance(1.5)
    assert (clock.now_seconds(), clock.monotonic_seconds()) == (6.5, 6.5)


def test_the_system_clock_tells_this_machines_time() -> None:
    clock: Clock = SystemClock()
    before = time.time()
    assert before <= clock.now_seconds() <= time.time()
    first = clock.monotonic_seconds()
    assert clock.monotonic_seconds() >= first
