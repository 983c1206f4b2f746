"""PromQL's aggregations: many series to one per group of labels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leptonai.operations.ingest.promql.matrix import (
    Labels,
    Matrix,
    Scalars,
    empty,
    only,
    present_rows,
    without,
)
from leptonai.operations.ingest.promql.windows import quantile
from leptonai.operations.series import NAME_LABEL


def aggregate(
    name: str, inner: Matrix, labels: tuple[str, ...], *, drop: bool, parameter: Scalars | None = None
) -> Matrix:
    """One aggregation.

    Args:
        name: such as ``sum``.
        inner: what to aggregate.
        labels: to group by, or (``drop``) to leave out.
        parameter: of ``topk``, ``bottomk`` and ``quantile``.
    """
    groups: dict[Labels, list[int]] = {}
    for row, each in enumerate(inner.labels):
        key = without(each, (*labels, NAME_LABEL)) if drop else only(each, labels)
        groups.setdefault(key, []).append(row)
    if not groups:
        return empty(inner.values.shape[1])
    if name in ("topk", "bottomk"):
        assert parameter is not None
        return _top(inner, list(groups.values()), parameter.values, largest=name == "topk")
    rows = [_one(name, inner.values[own], inner.present[own], parameter) for own in groups.values()]
    present = np.stack([inner.present[own].any(axis=0) for own in groups.values()])
    return Matrix(tuple(groups), np.stack(rows), present)


def _one(
    name: str, values: NDArray[np.float64], present: NDArray[np.bool_], parameter: Scalars | None
) -> NDArray[np.float64]:
    count: NDArray[np.float64] = present.sum(axis=0).astype(np.float64)
    with np.errstate(all="ignore"):
        if name == "count":
            return count
        if name == "group":
            return np.ones(values.shape[1])
        if name in ("min", "max"):  # NaN only where there is nothing else
            pick = np.fmin if name == "min" else np.fmax
            found: NDArray[np.float64] = pick.reduce(np.where(present, values, np.nan), axis=0)
            return found
        if name == "quantile":
            assert parameter is not None
            columns = range(values.shape[1])
            return np.array([quantile(parameter.values[at], values[present[:, at], at]) for at in columns])
        total: NDArray[np.float64] = np.where(present, values, 0.0).sum(axis=0)
        mean: NDArray[np.float64] = total / count
        if name == "sum":
            return total
        if name == "avg":
            return mean
        variance: NDArray[np.float64] = np.where(present, (values - mean) ** 2, 0.0).sum(axis=0) / count
        deviation: NDArray[np.float64] = np.sqrt(variance)
        return variance if name == "stdvar" else deviation


def _top(inner: Matrix, groups: list[list[int]], num_kept: NDArray[np.float64], *, largest: bool) -> Matrix:
    """The series with the most extreme values at each time, names kept; NaN is the least extreme."""
    present = np.zeros_like(inner.present)
    for own in groups:
        values = inner.values[own] if largest else -inner.values[own]
        ranked = np.where(np.isnan(values), -np.inf, values)
        missing = ~inner.present[own]
        order = np.lexsort((-ranked, np.isnan(values), missing), axis=0)
        place = np.argsort(order, axis=0, kind="stable")
        present[own] = (place < np.floor(np.nan_to_num(num_kept, posinf=1e18))) & ~missing
    return present_rows(Matrix(inner.labels, inner.values, present))
