"""What a column, an augmentation or a learner of one's own must keep, as checks to run."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from leptonai.training.data.dataset import Augment, Column
from leptonai.training.data.draws import Draws
from leptonai.training.learner import Batch, Learner, LearnerState, shares
from leptonai.training.parameter_server.flat import FlatLearner


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


def check_flat_learner(make: Callable[[], FlatLearner], batch: Batch) -> None:
    """A flat learner must start equal, give true gradients however a batch is cut, and keep to its memory.

    Args:
        make: builds the same learner each time; of a model without batch normalisation or dropout, which by
            their nature depend on how a batch is cut.
        batch: at least two examples it can learn from.
    """
    length = len(batch[0])
    first, second = make(), make()
    _assert_same(first.state(), second.state(), 0.0, "two learners of one job start differently")
    parameters, gradients = _bind(first)
    before = parameters.copy()
    gradients[:] = np.nan  # whatever is not overwritten shows
    loss = first.gradient(batch, num_examples=length, seed=1)
    whole = gradients.copy()
    assert np.isfinite(whole).all(), "gradient does not overwrite all of its memory"
    np.testing.assert_array_equal(parameters, before, "gradient writes into the parameters")
    again = first.gradient(batch, num_examples=length, seed=1)
    assert again == loss, "the loss differs for equal seeds"
    np.testing.assert_array_equal(gradients, whole, "the gradient differs for equal seeds")
    _check_slope(first, parameters, whole, batch)
    summed = np.zeros_like(whole)
    for cut in shares(length, 2):
        first.gradient(tuple(column[cut] for column in batch), num_examples=length, seed=1)
        summed += gradients
    np.testing.assert_allclose(summed, whole, rtol=1e-4, atol=1e-5, err_msg="halves do not sum to the whole")
    assert first.gradient(tuple(column[:0] for column in batch), num_examples=length, seed=1) == 0.0
    assert not gradients.any(), "an empty batch must give zeros"
    _check_local_steps(first, second, parameters, batch)


def _bind(learner: FlatLearner) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Give a learner memory filled with its initial values: one array for all, a piece a tensor."""
    values = np.concatenate([np.zeros(0, np.float32), *learner.initial()])
    gradients = np.zeros_like(values)
    edges = np.cumsum([spec.num_elements for spec in learner.tensors])[:-1]
    learner.bind(np.split(values, edges), np.split(gradients, edges))
    return values, gradients


def _check_slope(
    learner: FlatLearner, parameters: NDArray[np.float32], gradient: NDArray[np.float32], batch: Batch
) -> None:
    """Moving parameters along the gradient must change the loss by as much as the gradient says."""
    before, length = parameters.copy(), len(batch[0])
    steepness = float(np.linalg.norm(gradient.astype(np.float64)))
    reach = 1e-2  # large enough that rounding in float32 losses does not show

    def mean_loss(distance: float) -> float:
        parameters[:] = before + np.float32(distance / steepness) * gradient
        learner.refresh()
        return learner.gradient(batch, num_examples=length, seed=1) / length

    slope = (mean_loss(reach) - mean_loss(-reach)) / (2 * reach)
    parameters[:] = before
    learner.refresh()
    assert abs(slope - steepness) <= 0.02 * steepness, (
        f"the loss rises by {slope:.6g} along the gradient, which says {steepness:.6g}"
    )


def _check_local_steps(
    first: FlatLearner, second: FlatLearner, parameters: NDArray[np.float32], batch: Batch
) -> None:
    """Local steps must move the bound parameters, and go on exactly from a snapshot."""
    before = parameters.copy()
    first.local_step(batch, lr_factor=1.0, seed=1)
    assert not np.array_equal(parameters, before), "local_step does not change the bound parameters"
    theirs, _ = _bind(second)
    second.restore(first.state())
    np.testing.assert_array_equal(theirs, parameters, "restore does not write the bound parameters")
    first.local_step(batch, lr_factor=1.0, seed=2)
    second.local_step(batch, lr_factor=1.0, seed=2)
    np.testing.assert_array_equal(theirs, parameters, "a restored learner does not go on exactly")
    _assert_same(first.state(), second.state(), 0.0, "a restored learner does not go on exactly")


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
