"""Threads that take turns: one at a time, in a fixed order, and none left behind."""

from __future__ import annotations

import threading

import pytest

from leptonai.training.parameter_server.turns import Turn, take_turns


def test_the_first_that_can_go_on_goes_on() -> None:
    said: list[str] = []

    def first(turn: Turn) -> None:
        said.append("a")
        turn.wait(lambda: "2" in said)
        said.append("b")

    def second(turn: Turn) -> None:
        turn.wait(lambda: True)
        said.append("1")
        turn.wait(lambda: "tick" in said)
        said.append("2")

    def tick() -> bool:
        said.append("tick")
        return said.count("tick") < 3

    assert take_turns([first, second], tick)
    assert said == ["a", "1", "tick", "2", "b", "tick", "tick"]


def test_a_standstill_ends_all_of_them() -> None:
    before, left = threading.active_count(), []

    def never(turn: Turn) -> None:
        try:
            turn.wait(lambda: False)
        finally:
            left.append("gone")

    assert not take_turns([never, lambda turn: None, never], lambda: False)
    assert left == ["gone", "gone"]
    assert threading.active_count() == before


def test_what_one_raises_is_raised_and_the_others_end() -> None:
    before = threading.active_count()

    def fails(turn: Turn) -> None:
        turn.wait(lambda: True)
        raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        take_turns([lambda turn: turn.wait(lambda: False), fails, lambda turn: None], lambda: False)
    assert threading.active_count() == before
