"""What a column, an augmentation or a learner of one's own must keep, as checks to run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from leptonai.training.data.dataset import Augment, Column
from leptonai.training.data.draws import Draws
from leptonai.training.learner import Batch, Learner, LearnerState, shares


def check_column(column: Column) -> None:
    """A column must give the examples asked for, in that order, as a new array.

    >>> from leptonai.training.data.dataset import ArrayColumn
    >>> check_column(ArrayColumn(np.arange(6).reshape(3, 2)))
    """
    length = len(column)
    assert length > 0, "the column has no examples"
    everything = column.take(np.arange(length, dtype=np.int64))
    assert everything.shape == (length, *column.shape), (
        f"take gave {everything.shape}, shape says {column.shape}"
    )
    assert everything.dtype == column.dtype, f"take gave {everything.dtype}, dtype says {column.dtype}"
    backwards = np.arange(length, dtype=np.int64)[::-1].copy()
    for indices in (backwards, np.zeros(3, np.int64), np.zeros(0, np.int64)):
        np.testing.assert_array_equal(
            column.take(indices), everything[indices], "take does not follow its indices"
        )
    taken = column.take(np.zeros(1, np.int64))
    assert not np.shares_memory(taken, column.take(np.zeros(1, np.int64))), (
        "take must give a new array each time"
    )


def check_augment(augment: Augment, batch: Batch, *, seed: int = 0) -> None:
    """An augmentation must treat an example alike however many workers share the batch.

    >>> def brighten(batch, draws):
    ...     return (batch[0] * draws.uniform(0.5, 1.5)[:, None], *batch[1:])
    >>> check_augment(brighten, (np.ones((7, 2)), np.zeros(7)))
    """
    length = len(batch[0])

    def run(share: slice) -> Batch:
        draws = Draws(seed=seed, epoch=1, step=2, num_examples=length, share=share)
        return augment(tuple(column[share].copy() for column in batch), draws)

    whole = run(slice(0, length))
    for num_workers in (2, 3):
        parts = [run(share) for share in shares(length, num_workers)]
        for place, column in enumerate(whole):
            joined = np.concatenate([part[place] for part in parts])
            np.testing.assert_array_equal(joined, column, f"column {place} depends on the number of workers")


def check_learner(make: Callable[[], Learner], batch: Batch) -> None:
    """A learner must start equal, weigh micro-batches by their examples, and go on exactly from a snapshot.

    Args:
        make: builds the same learner of one worker each time.
        batch: at least three examples it can learn from.
    """
    length = len(batch[0])

    def step(learner: Learner, cuts: int, seed: int = 1) -> float:
        parts = [tuple(column[cut] for column in batch) for cut in shares(length, cuts)]
        return learner.step(parts, num_examples=length, lr_factor=1.0, seed=seed)

    first, second = make(), make()
    _assert_same(first.state(), second.state(), 0.0, "two learners of one job start differently")
    loss, parts_loss = step(first, 1), step(second, min(3, length))
    assert abs(loss - parts_loss) <= 1e-4 * abs(loss), (
        f"losses differ by micro-batches: {loss} and {parts_loss}"
    )
    _assert_same(first.state(), second.state(), 1e-4, "the gradient depends on how the batch is cut")
    copy = make()
    copy.restore(first.state())
    step(first, 1, seed=2)
    step(copy, 1, seed=2)
    _assert_same(first.state(), copy.state(), 0.0, "a restored learner does not go on exactly")


def _assert_same(left: LearnerState, right: LearnerState, tolerance: float, message: str) -> None:
    assert left.tensors.keys() == right.tensors.keys(), f"{message}: tensors differ in name"
    for name, raw in left.tensors.items():
        other = right.tensors[name]
        assert (raw.dtype, raw.shape) == (other.dtype, other.shape), f"{message}: {name}"
        if tolerance and raw.dtype == "F32":
            ours, theirs = np.frombuffer(raw.data, np.float32), np.frombuffer(other.data, np.float32)
            np.testing.assert_allclose(
                ours, theirs, rtol=tolerance, atol=tolerance, err_msg=f"{message}: {name}"
            )
        elif not tolerance:
            assert bytes(raw.data) == bytes(other.data), f"{message}: {name}"
