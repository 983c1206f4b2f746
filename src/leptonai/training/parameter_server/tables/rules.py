"""How a gradient changes a row: numpy on a block of rows and their state, in place."""

from __future__ import annotations

from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from leptonai.training.parameter_server.tables.spec import RowAdagrad, RowAdam, RowSGD, Rule

# Rows worked on at a time, so that the passes over them find them in the CPU's cache.
_BLOCK_NUMBERS = 1 << 14


def initial_state(rule: Rule, out: NDArray[np.float32]) -> None:
    """Write the state of new rows into ``out`` (N, state_width)."""
    out[...] = rule.initial if isinstance(rule, RowAdagrad) else 0.0


def update_rows(
    rule: Rule,
    rows: NDArray[np.float32],
    states: NDArray[np.float32],
    gradients: NDArray[np.float32],
    *,
    lr_factor: float,
) -> None:
    """One step of ``rule``, in place.

    Args:
        rows: (N, width), every id at most once.
        states: (N, state_width).
        gradients: (N, width); left as they are.
        lr_factor: on the rule's learning rate.
    """
    width = rows.shape[1]
    block = max(1, _BLOCK_NUMBERS // width)
    work = np.empty((min(block, len(rows)), width), np.float32)
    rate = np.float32(rule.lr * lr_factor)
    for start in range(0, len(rows), block):
        part = slice(start, start + block)
        row, state, gradient = rows[part], states[part], gradients[part]
        scratch = work[: len(row)]
        match rule:
            case RowSGD():
                np.multiply(gradient, rate, out=scratch)
            case RowAdagrad():
                _adagrad(rule, state, gradient, rate, scratch)
            case RowAdam():
                _adam(rule, state, gradient, rate, scratch)
            case _:
                assert_never(rule)
        np.subtract(row, scratch, out=row)


def _adagrad(
    rule: RowAdagrad,
    state: NDArray[np.float32],
    gradient: NDArray[np.float32],
    rate: np.float32,
    step: NDArray[np.float32],
) -> None:
    sums = state[:, 0]
    sums += _mean_square(gradient)
    scale = rate / (np.sqrt(sums) + np.float32(rule.eps))
    np.multiply(gradient, scale[:, None], out=step)


def _adam(
    rule: RowAdam,
    state: NDArray[np.float32],
    gradient: NDArray[np.float32],
    rate: np.float32,
    step: NDArray[np.float32],
) -> None:
    width = gradient.shape[1]
    first, second = (np.float32(beta) for beta in rule.betas)
    moments, squares, counts = state[:, :width], state[:, width], state[:, width + 1]
    np.minimum(counts + 1, np.float32(2**24 - 1), out=counts)  # beyond, float32 no longer counts by one
    moments *= first
    np.multiply(gradient, 1 - first, out=step)
    moments += step
    squares *= second
    squares += (1 - second) * _mean_square(gradient)
    # In float64: 1 - beta ** 1 for beta near 1 would lose most of its bits.
    steps = counts.astype(np.float64)
    first_part, second_part = 1 - rule.betas[0] ** steps, 1 - rule.betas[1] ** steps
    scale = rate / first_part / (np.sqrt(squares / second_part) + rule.eps)
    np.multiply(moments, scale.astype(np.float32)[:, None], out=step)


def _mean_square(gradient: NDArray[np.float32]) -> NDArray[np.float32]:
    means: NDArray[np.float32] = np.einsum("ij,ij->i", gradient, gradient)
    means *= np.float32(1 / gradient.shape[1])
    return means
