"""Every example of an epoch is dealt until it is done exactly once, whatever happens in between."""

from __future__ import annotations

import json
import random
from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonai.core.errors import InputError
from leptonai.training.parameter_server.pieces import PieceQueue
from leptonai.training.parameter_server.work import Piece


def examples_of(queue: PieceQueue, piece: Piece) -> list[tuple[int, int]]:
    """(step, index in the step) of each example."""
    assert 0 <= piece.start <= piece.stop <= queue.step_size(piece.step)
    return [(piece.step, index) for index in range(piece.start, piece.stop)]


@settings(max_examples=150, deadline=None)
@given(
    num_examples=st.integers(1, 60),
    batch=st.integers(1, 25),
    total_steps=st.integers(1, 12),
    seed=st.integers(0, 2**32),
)
def test_each_example_is_done_once_an_epoch(
    num_examples: int, batch: int, total_steps: int, seed: int
) -> None:
    choose = random.Random(seed)
    counts: dict[str, Any] = {
        "num_examples": num_examples, "global_batch_size": batch, "total_steps": total_steps
    }  # fmt: skip
    queue = PieceQueue(**counts)
    done: Counter[tuple[int, int]] = Counter()
    out: list[Piece] = []
    for _ in range(20_000):
        if queue.epoch_complete:
            if queue.run_complete:
                break
            queue.next_epoch()
        action = choose.random()
        if not out and action < 0.1:
            queue = PieceQueue(**counts, state=json.loads(json.dumps(queue.state())))
        elif action < 0.4:
            piece = queue.take(choose.randint(1, 10))
            out += [piece] if piece else []
        elif action < 0.5:
            pieces = queue.take_step(choose.randint(1, 6))
            assert len({piece.step for piece in pieces}) <= 1
            out += pieces
        elif out:
            piece = out.pop(choose.randrange(len(out)))
            if choose.random() < 0.3:
                queue.give_back(piece)
            else:
                queue.done(piece)
                done.update(examples_of(queue, piece))
    assert queue.run_complete
    expected = {(step, index) for step in range(total_steps) for index in range(queue.step_size(step))}
    assert done == dict.fromkeys(expected, 1)
    assert queue.steps_done == total_steps
    assert queue.examples_done == len(expected)


def test_what_was_given_back_comes_first_and_grows_together() -> None:
    queue = PieceQueue(num_examples=8, global_batch_size=8, total_steps=1)
    first, second, third = (queue.take(2) for _ in range(3))
    assert first is not None
    assert second is not None
    assert third is not None
    queue.give_back(first)
    queue.give_back(third)
    assert queue.take(8) == first
    queue.give_back(second)
    assert queue.take(8) == Piece(step=0, start=2, stop=8)


def test_a_step_is_cut_as_between_workers_with_empty_shares_where_examples_are_few() -> None:
    queue = PieceQueue(num_examples=10, global_batch_size=8, total_steps=2)
    assert [(piece.start, piece.stop) for piece in queue.take_step(3)] == [(0, 3), (3, 6), (6, 8)]
    last = queue.take_step(3)
    assert [(piece.step, piece.start, piece.stop) for piece in last] == [(1, 0, 1), (1, 1, 2), (1, 2, 2)]
    assert queue.take_step(3) == ()
    queue.done(last[2])  # an empty piece: nothing happens
    assert queue.examples_done == 0


def test_an_empty_share_of_a_full_batch_belongs_to_that_batch() -> None:
    queue = PieceQueue(num_examples=4, global_batch_size=2, total_steps=2)
    assert queue.take_step(3)[2] == Piece(step=0, start=2, stop=2)


def test_pieces_of_equal_size_rather_than_a_scrap() -> None:
    queue = PieceQueue(num_examples=10, global_batch_size=10, total_steps=1)
    pieces = [queue.take(3) for _ in range(4)]
    assert [piece and piece.num_examples for piece in pieces] == [3, 3, 2, 2]


def test_a_run_may_end_within_an_epoch() -> None:
    queue = PieceQueue(num_examples=100, global_batch_size=10, total_steps=13)
    for _ in range(10):
        queue.done(queue.take_step(1)[0])
    assert queue.epoch_complete
    assert queue.epoch_is_whole
    assert not queue.run_complete
    queue.next_epoch()
    for _ in range(3):
        queue.done(queue.take_step(1)[0])
    assert queue.run_complete
    assert not queue.epoch_is_whole
    assert queue.steps_done == 13


def test_a_longer_run_goes_on_from_a_shorter_ones_end() -> None:
    short = PieceQueue(num_examples=10, global_batch_size=4, total_steps=2)
    short.done(short.take_step(1)[0])
    short.done(short.take_step(1)[0])
    longer = PieceQueue(num_examples=10, global_batch_size=4, total_steps=3, state=short.state())
    assert longer.take(4) == Piece(step=2, start=0, stop=2)


@pytest.mark.parametrize(
    "change",
    [
        {"num_examples": 9}, {"global_batch_size": 3}, {"epoch": -1}, {"epoch": 7}, {"epoch": "0"},
        {"done": [[0, 11]]}, {"done": [[4, 2]]}, {"done": [[0, 4], [2, 6]]}, {"done": None},
    ],
)  # fmt: skip
def test_a_state_that_does_not_fit_is_refused(change: dict[str, object]) -> None:
    counts: dict[str, Any] = {"num_examples": 10, "global_batch_size": 4, "total_steps": 6}
    state = {**PieceQueue(**counts).state(), **change}
    with pytest.raises(InputError):
        PieceQueue(**counts, state=state)


def test_counts_below_one_are_refused() -> None:
    with pytest.raises(InputError, match="global_batch_size"):
        PieceQueue(num_examples=1, global_batch_size=0, total_steps=1)
