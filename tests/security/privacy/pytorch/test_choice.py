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


@pytest.mark.parametrize(
    ("seconds", "size"),
    [
        ({8: 3.0, 4: 2.0, 2: 1.0, 1: 0.5}, 0),
        ({8: 3.0, 4: 2.0, 2: 1.0, 1: 1.0}, 8),
        ({8: 3.0, 4: 3.0, 2: 1.0, 1: 1.0}, 2),
    ],
)
def test_the_physical_batch_grows_while_that_is_faster(seconds: dict[int, float], size: int) -> None:
    clock, tried = _Clock(), []
    physical = PhysicalBatch(smallest=2, now=clock)
    while physical.size is None:
        with physical.step(16) as pieces:
            assert [place for piece in pieces for place in range(16)[piece]] == list(range(16))
            clock.seconds += seconds[len(pieces)]
            tried.append(len(pieces))
    assert physical.size == size
    assert tried == sorted(tried, reverse=True)


def test_a_batch_below_the_smallest_size_goes_whole() -> None:
    physical = PhysicalBatch(smallest=64)
    for _ in range(4):
        with physical.step(10) as pieces:
            assert pieces == (slice(0, 10),)
    assert physical.size == 0


def test_empty_steps_have_no_pieces_and_decide_nothing() -> None:
    physical = PhysicalBatch(smallest=2)
    for _ in range(20):
        with physical.step(0) as pieces:
            assert pieces == ()
    assert physical.size is None


@pytest.mark.parametrize(("smallest", "fixed"), [(0, None), (-1, None), (64, -1)])
def test_sizes_below_one_are_refused(smallest: int, fixed: int | None) -> None:
    with pytest.raises(InputError, match="PhysicalBatch"):
        PhysicalBatch(smallest=smallest, fixed=fixed)
