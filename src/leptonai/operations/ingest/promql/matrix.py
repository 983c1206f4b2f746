"""Values of many series at many times, the currency between PromQL's parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.operations.series import NAME_LABEL

Labels = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True, eq=False)
class Matrix:
    """An instant vector at each evaluation time: series (rows) by times (columns).

    Args:
        labels: of each row, sorted.
        values: [S, T].
        present: [S, T], where there is a value; NaN is a value.
    """

    labels: tuple[Labels, ...]
    values: NDArray[np.float64]
    present: NDArray[np.bool_]

    def mapped(self, act: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> Matrix:
        """The same series without their names, each value put through ``act``.

        Raises:
            InputError: two series differ in nothing but their names.
        """
        with np.errstate(all="ignore"):
            return Matrix(self.labels, act(self.values), self.present).nameless()

    def nameless(self) -> Matrix:
        """Without metric names.

        Raises:
            InputError: two series that have values at the same time differ in nothing but their names.
        """
        return merged(tuple(without(each, (NAME_LABEL,)) for each in self.labels), self.values, self.present)


@dataclass(frozen=True, slots=True, eq=False)
class Scalars:
    """One number at each evaluation time: [T]."""

    values: NDArray[np.float64]


def merged(labels: tuple[Labels, ...], values: NDArray[np.float64], present: NDArray[np.bool_]) -> Matrix:
    """Rows of equal labels as one row.

    Raises:
        InputError: two of them have a value at the same time.
    """
    if len(set(labels)) == len(labels):
        return Matrix(labels, values, present)
    rows: dict[Labels, int] = {}
    for each in labels:
        rows.setdefault(each, len(rows))
    out = np.zeros((len(rows), values.shape[1]))
    there = np.zeros(out.shape, np.bool_)
    for row, each in enumerate(labels):
        target = rows[each]
        if (there[target] & present[row]).any():
            raise InputError("the result would hold two series with the same labels at the same time")
        out[target][present[row]] = values[row][present[row]]
        there[target] |= present[row]
    return Matrix(tuple(rows), out, there)


def present_rows(matrix: Matrix) -> Matrix:
    """Without the series that have no value at any time."""
    rows = np.flatnonzero(matrix.present.any(axis=1))
    return Matrix(
        tuple(matrix.labels[row] for row in rows.tolist()), matrix.values[rows], matrix.present[rows]
    )


def without(labels: Labels, names: Iterable[str]) -> Labels:
    """Labels but for some.

    >>> without((("a", "1"), ("b", "2")), ["a"])
    (('b', '2'),)
    """
    dropped = frozenset(names)
    return tuple(pair for pair in labels if pair[0] not in dropped)


def only(labels: Labels, names: Iterable[str]) -> Labels:
    """Some of the labels."""
    kept = frozenset(names)
    return tuple(pair for pair in labels if pair[0] in kept)


def empty(num_times: int) -> Matrix:
    """No series."""
    return Matrix((), np.zeros((0, num_times)), np.zeros((0, num_times), np.bool_))
