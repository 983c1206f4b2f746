"""PromQL's operators between numbers and vectors, matched one to one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.operations.ingest.promql.matrix import (
    Labels,
    Matrix,
    Scalars,
    empty,
    merged,
    only,
    present_rows,
    without,
)
from leptonai.operations.ingest.promql.parser import COMPARISONS, SET_OPERATORS
from leptonai.operations.ingest.promql.syntax import Binary
from leptonai.operations.series import NAME_LABEL

Floats = NDArray[np.float64]

_ACTS: Mapping[str, Callable[[Floats, Floats], NDArray[np.generic]]] = MappingProxyType(
    {
        "+": np.add, "-": np.subtract, "*": np.multiply, "/": np.true_divide, "%": np.fmod, "^": np.power,
        "==": np.equal, "!=": np.not_equal, "<": np.less, "<=": np.less_equal, ">": np.greater,
        ">=": np.greater_equal,
    }
)  # fmt: skip


def combine(expression: Binary, left: Matrix | Scalars, right: Matrix | Scalars) -> Matrix | Scalars:
    """The operator's result.

    Raises:
        InputError: the sides do not go together.
    """
    op = expression.op
    if op in SET_OPERATORS:
        if not isinstance(left, Matrix) or not isinstance(right, Matrix):
            raise InputError(f"{op} needs a vector on both sides")
        return _sets(expression, left, right)
    with np.errstate(all="ignore"):
        if isinstance(left, Scalars) and isinstance(right, Scalars):
            if op in COMPARISONS and not expression.returns_bool:
                raise InputError("comparing two scalars needs bool")
            return Scalars(_ACTS[op](left.values, right.values).astype(np.float64))
        if isinstance(left, Matrix) and isinstance(right, Matrix):
            return _vectors(expression, left, right)
        vector = left if isinstance(left, Matrix) else right
        assert isinstance(vector, Matrix)
        found = _ACTS[op](left.values, right.values)
    return _kept(expression, vector.labels, found, vector.values, vector.present)


def _kept(
    expression: Binary, labels: tuple[Labels, ...], found: NDArray[np.generic], values: Floats,
    present: NDArray[np.bool_],
) -> Matrix:  # fmt: skip
    """A comparison without bool keeps the values it is true for, with their names; anything else makes new ones."""
    if expression.op in COMPARISONS and not expression.returns_bool:
        there = present & found.astype(np.bool_)
        return present_rows(Matrix(labels, values, there))
    return Matrix(labels, found.astype(np.float64), present).nameless()


def _key(expression: Binary, labels: Labels) -> Labels:
    if expression.on is not None:
        return only(labels, expression.on)
    return without(labels, (*expression.ignoring, NAME_LABEL))


def _sides(expression: Binary, matrix: Matrix, side: str) -> Matrix:
    keys = tuple(_key(expression, each) for each in matrix.labels)
    try:
        return merged(keys, matrix.values, matrix.present)
    except InputError:
        raise InputError(
            f"several series on the {side} side of {expression.op} match the same labels",
            hint="aggregate it, or match on more labels; many-to-one is not supported",
        ) from None


def _vectors(expression: Binary, left: Matrix, right: Matrix) -> Matrix:
    keys_left = [_key(expression, each) for each in left.labels]
    one, other = _sides(expression, left, "left"), _sides(expression, right, "right")
    rows_one = {labels: row for row, labels in enumerate(one.labels)}
    rows_other = {labels: row for row, labels in enumerate(other.labels)}
    filters = expression.op in COMPARISONS and not expression.returns_bool
    if filters:  # the left side's own series stay, names too
        pairs = [(labels, row, rows_other.get(key)) for row, (labels, key) in
                 enumerate(zip(left.labels, keys_left, strict=True))]  # fmt: skip
        if expression.on is not None:
            pairs = [(only(labels, expression.on), row, match) for labels, row, match in pairs]
        elif expression.ignoring:
            pairs = [(without(labels, expression.ignoring), row, match) for labels, row, match in pairs]
        source = left
    else:
        pairs = [(labels, row, rows_other.get(labels)) for labels, row in rows_one.items()]
        source = one
    matched = [(labels, row, match) for labels, row, match in pairs if match is not None]
    if not matched:
        return empty(left.values.shape[1])
    a, b = [row for _, row, _ in matched], [match for _, _, match in matched]
    found = _ACTS[expression.op](source.values[a], other.values[b])
    present = source.present[a] & other.present[b]
    return _kept(expression, tuple(labels for labels, _, _ in matched), found, source.values[a], present)


def _sets(expression: Binary, left: Matrix, right: Matrix) -> Matrix:
    """``and``, ``or``, ``unless``, at each time: only presence matters."""
    base, other = (right, left) if expression.op == "or" else (left, right)
    there: dict[Labels, NDArray[np.bool_]] = {}
    for labels, present in zip(other.labels, other.present, strict=True):
        key = _key(expression, labels)
        there[key] = there[key] | present if key in there else present
    nowhere = np.zeros(base.values.shape[1], np.bool_)
    mask = [there.get(_key(expression, labels), nowhere) for labels in base.labels]
    matched = np.array(mask, np.bool_).reshape(base.present.shape)
    kept = base.present & (matched if expression.op == "and" else ~matched)
    if expression.op != "or":
        return present_rows(Matrix(base.labels, base.values, kept))
    return merged(
        (*left.labels, *right.labels),
        np.concatenate([left.values, right.values]),
        np.concatenate([left.present, kept]),
    )
