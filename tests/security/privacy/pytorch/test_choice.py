"""Timed choices, with a clock that is told the time."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from leptonai.core.errors import InputError
from leptonai.security.privacy.pytorch.choice import Chooser
from leptonai.security.privacy.pytorch.physical import PhysicalBatch


class _Clock:
    def __init__(self) -> None:
        self.seconds = 0.0
        self.calls: list[str] = []

    def __call__(self) -> float:
        return self.seconds

    def takes(self, name: str, seconds: float) -> Callable[[], None]:
        def work() -> None:
            self.calls.append(name)
            self.seconds += seconds

        return work


def test_the_fastest_way_is_kept_and_the_trial_held_once() -> None:
    clock = _Clock()
    chooser = Chooser(now=clock)
    trials = {"slow": clock.takes("slow", 2.0), "fast": clock.takes("fast", 1.0)}
    assert chooser.choose("key", trials) == "fast"
    held = len(clock.calls)
    assert chooser.choose("key", trials) == "fast"
    assert len(clock.calls) == held
    assert chooser.chosen == {"key": "fast"}


def test_a_hopeless_way_runs_once() -> None:
    clock = _Clock()
    Chooser(now=clock).choose("key", {"bad": clock.takes("bad", 10.0), "good": clock.takes("good", 1.0)})
    assert clock.calls.count("bad") == 1
    assert clock.calls.count("good") == 3


def test_much_larger_work_is_tried_again() -> None:
    clock = _Clock()
    chooser = Chooser(now=clock)
    small = {"one": clock.takes("one", 1.0), "two": clock.takes("two", 2.0)}
    large = {"one": clock.takes("one", 9.0), "two": clock.takes("two", 4.0)}
    assert chooser.choose("key", small, size=2) == "one"
    assert chooser.choose("key", large, size=8) == "one"
    assert chooser.choose("key", large, size=9) == "two"
    assert chooser.choose("key", small, size=1) == "two"


def test_a_preferred_way_needs_no_trial() -> None:
    clock = _Clock()
    trials = {"one": clock.takes("one", 1.0), "two": clock.takes("two", 2.0)}
    assert Chooser(preferred=("none", "two"), now=clock).choose("key", trials) == "two"
    assert clock.calls == []


def test_the_physical_batch_is_the_size_that_was_fastest() -> None:
    clock = _Clock()
    physical = PhysicalBatch(sizes=(2, 4), now=clock)
    for _ in range(12):
        with physical.step(8) as pieces:
            assert [place for piece in pieces for place in range(8)[piece]] == list(range(8))
            clock.seconds += {1: 3.0, 4: 2.0, 2: 1.0}[len(pieces)]
    assert physical.size == 4


def test_empty_steps_have_no_pieces_and_decide_nothing() -> None:
    physical = PhysicalBatch(sizes=(2,))
    for _ in range(20):
        with physical.step(0) as pieces:
            assert pieces == ()
    assert physical.size is None


@pytest.mark.parametrize(("sizes", "whole"), [((0,), True), ((), False), ((8, -1), False)])
def test_sizes_below_one_are_refused(sizes: tuple[int, ...], whole: bool) -> None:
    with pytest.raises(InputError, match="PhysicalBatch"):
        PhysicalBatch(sizes=sizes, whole=whole)
