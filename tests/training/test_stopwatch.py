"""Where the time of steps goes, as the loop and the learners tell it."""

from __future__ import annotations

from leptonai.training.stopwatch import Stopwatch


class Clock:
    def __init__(self) -> None:
        self.at = 0.0

    def __call__(self) -> float:
        return self.at


def test_what_lies_between_two_laps_belongs_to_the_later() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    watch.begin()
    for phase, until in (("input", 1.0), ("compute", 4.0), ("update", 4.5), ("input", 5.0)):
        clock.at = until
        watch.lap(phase)
    assert watch.take() == {"input": 1.5, "compute": 3.0, "update": 0.5}
    assert watch.take() == {}


def test_a_lap_may_end_before_now_but_not_before_it_began() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    clock.at = 2.0
    watch.begin()
    clock.at = 10.0
    watch.lap("compute", until=7.0)
    watch.lap("exchange")
    watch.lap("update", until=3.0)
    assert watch.take() == {"compute": 5.0, "exchange": 3.0, "update": 0.0}


def test_beginning_anew_leaves_out_what_came_before() -> None:
    clock = Clock()
    watch = Stopwatch(clock)
    watch.begin()
    clock.at = 3.0
    watch.begin()
    clock.at = 4.0
    watch.lap("input")
    assert watch.take() == {"input": 1.0}
