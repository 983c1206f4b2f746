"""The order of examples depends on (seed, epoch, step) alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.core.errors import InputError
from leptonai.training.data.order import Order, epoch_order, step_indices
from leptonai.training.learner import shares

seeds = st.integers(0, 2**64 - 1)
sizes = st.integers(1, 300)


def seen(order: Order, steps: range, num_workers: int) -> list[int]:
    """What the workers together take in these steps, worker by worker."""
    taken: list[int] = []
    for step in steps:
        indices = order.batch(step).indices
        for share in shares(len(indices), num_workers):
            taken += indices[share].tolist()
    return taken


@given(seeds, sizes, st.integers(1, 64), st.integers(1, 7), st.integers(0, 5))
def test_an_epoch_covers_every_example_once_for_any_number_of_workers(
    seed: int, num_examples: int, batch_size: int, num_workers: int, epoch: int
) -> None:
    order = Order(seed=seed, num_examples=num_examples, global_batch_size=batch_size)
    steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
    assert sorted(seen(order, steps, num_workers)) == list(range(num_examples))


@given(seeds, sizes, st.integers(1, 64), st.data())
def test_resizing_from_two_to_three_workers_mid_epoch_loses_and_repeats_nothing(
    seed: int, num_examples: int, batch_size: int, data: st.DataObject
) -> None:
    order = Order(seed=seed, num_examples=num_examples, global_batch_size=batch_size)
    change = data.draw(st.integers(0, order.steps_per_epoch))
    before = seen(order, range(change), 2)
    resumed = Order(seed=seed, num_examples=num_examples, global_batch_size=batch_size)
    after = seen(resumed, range(change, order.steps_per_epoch), 3)
    assert before + after == seen(order, range(order.steps_per_epoch), 1)


@given(seeds, sizes, st.integers(1, 64), st.integers(0, 400))
def test_a_step_asked_for_alone_is_the_step_reached_in_turn(
    seed: int, num_examples: int, batch_size: int, step: int
) -> None:
    order = Order(seed=seed, num_examples=num_examples, global_batch_size=batch_size)
    for earlier in range(max(0, step - 3), step):
        order.batch(earlier)
    epoch, indices = step_indices(
        seed=seed, step=step, num_examples=num_examples, global_batch_size=batch_size
    )
    batch = order.batch(step)
    assert (batch.epoch, batch.indices.tolist()) == (epoch, indices.tolist())
    assert batch.epoch * order.steps_per_epoch + batch.step_in_epoch == step


def test_seeds_and_epochs_give_different_orders() -> None:
    orders = {
        tuple(epoch_order(seed=seed, epoch=epoch, num_examples=50)) for seed in range(4) for epoch in range(4)
    }
    assert len(orders) == 16


def test_large_seeds_count_to_their_last_bit() -> None:
    first, second = (epoch_order(seed=2**63 + last, epoch=0, num_examples=50).tolist() for last in range(2))
    assert first != second


def test_every_example_is_equally_likely_in_every_place() -> None:
    counts = np.zeros((5, 5))
    for seed in range(4000):
        counts[np.arange(5), epoch_order(seed=seed, epoch=0, num_examples=5)] += 1
    # Each count is binomial with mean 800 and deviation 25.3.
    assert np.abs(counts - 800).max() < 5 * 25.3


def test_the_order_is_the_same_in_every_release() -> None:
    # A change here breaks resume of every run there is: raise the checkpoints' format version with it.
    assert epoch_order(seed=7, epoch=2, num_examples=10).tolist() == [4, 1, 3, 2, 6, 8, 5, 0, 9, 7]


def test_an_epoch_order_handed_out_cannot_be_spoiled() -> None:
    order = Order(seed=0, num_examples=4, global_batch_size=4)
    with pytest.raises(ValueError, match="read-only"):
        order.batch(0).indices[0] = 3


@pytest.mark.parametrize("wrong", [{"num_examples": 0}, {"global_batch_size": 0}])
def test_empty_sizes_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        Order(**{"seed": 0, "num_examples": 1, "global_batch_size": 1, **wrong})


def test_without_shuffling_every_epoch_follows_the_data() -> None:
    order = Order(seed=3, num_examples=5, global_batch_size=2, shuffle=False)
    assert [order.batch(step).indices.tolist() for step in range(4)] == [[0, 1], [2, 3], [4], [0, 1]]
