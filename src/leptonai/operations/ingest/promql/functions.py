"""PromQL's functions of instant vectors and scalars."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.operations.ingest.intake import LABEL_NAME
from leptonai.operations.ingest.promql.matrix import Labels, Matrix, Scalars, empty, merged, without
from leptonai.operations.ingest.promql.patterns import safe_matcher
from leptonai.operations.series import NAME_LABEL

Floats = NDArray[np.float64]
Argument = Matrix | Scalars | str

_MAPS: Mapping[str, Callable[[Floats], Floats]] = MappingProxyType(
    {
        "abs": np.abs, "ceil": np.ceil, "floor": np.floor, "exp": np.exp, "ln": np.log, "log2": np.log2,
        "log10": np.log10, "sqrt": np.sqrt, "sgn": np.sign,
    }
)  # fmt: skip


def call(name: str, arguments: Sequence[Argument]) -> Matrix | Scalars:
    """A function's result at all evaluation times.

    Raises:
        InputError: it takes other arguments.
    """
    match name, arguments:
        case (
            ("abs" | "ceil" | "floor" | "exp" | "ln" | "log2" | "log10" | "sqrt" | "sgn"),
            [Matrix() as inner],
        ):
            return inner.mapped(_MAPS[name])
        case "round", [Matrix() as inner]:
            return inner.mapped(lambda values: np.floor(values + 0.5))
        case "round", [Matrix() as inner, Scalars(step)]:
            return inner.mapped(lambda values: np.floor(values / step + 0.5) * step)
        case "clamp", [Matrix() as inner, Scalars(low), Scalars(high)]:
            found = inner.mapped(lambda values: np.maximum(low, np.minimum(high, values)))
            return Matrix(found.labels, found.values, found.present & (low <= high))
        case "clamp_min", [Matrix() as inner, Scalars(low)]:
            return inner.mapped(lambda values: np.maximum(low, values))
        case "clamp_max", [Matrix() as inner, Scalars(high)]:
            return inner.mapped(lambda values: np.minimum(high, values))
        case (("sort" | "sort_desc"), [Matrix() as inner]):
            return _sorted(inner, descending=name == "sort_desc")
        case "scalar", [Matrix() as inner]:
            one = inner.present.sum(axis=0) == 1
            return Scalars(np.where(one, np.where(inner.present, inner.values, 0.0).sum(axis=0), np.nan))
        case "vector", [Scalars(values)]:
            return Matrix(((),), values[None, :], np.ones((1, len(values)), np.bool_))
        case "histogram_quantile", [Scalars(share), Matrix() as inner]:
            return histogram_quantile(share, inner)
        case "label_replace", [Matrix() as inner, str(target), str(new), str(source), str(pattern)]:
            return _label_replace(inner, target, new, source, pattern)
        case _:
            raise InputError(f"{name} does not take these arguments")


def _sorted(inner: Matrix, *, descending: bool) -> Matrix:
    """By the last value; only an instant query shows it."""
    keys = inner.values[:, -1] * (-1 if descending else 1)
    order = np.argsort(keys, kind="stable")
    return Matrix(tuple(inner.labels[row] for row in order), inner.values[order], inner.present[order])


def histogram_quantile(share: Floats, inner: Matrix) -> Matrix:
    """The quantile of classic histograms: linear within the bucket that holds it.

    Source: promql/quantile.go of Prometheus 2.42.
    """
    groups: dict[Labels, list[tuple[float, int]]] = {}
    for row, labels in enumerate(inner.labels):
        bound = dict(labels).get("le")
        try:
            upper = float("nan" if bound is None or "_" in bound else bound)
        except ValueError:
            continue
        if not np.isnan(upper):
            groups.setdefault(without(labels, ("le", NAME_LABEL)), []).append((upper, row))
    if not groups:
        return empty(inner.values.shape[1])
    values = np.zeros((len(groups), inner.values.shape[1]))
    present = np.zeros(values.shape, np.bool_)
    for target, buckets in enumerate(groups.values()):
        buckets.sort()
        bounds = np.array([upper for upper, _ in buckets])
        rows = [row for _, row in buckets]
        for column in range(values.shape[1]):
            there = inner.present[rows, column]
            if there.any():
                present[target, column] = True
                counts = inner.values[rows, column][there]
                values[target, column] = bucket_quantile(float(share[column]), bounds[there], counts)
    return Matrix(tuple(groups), values, present)


def bucket_quantile(share: float, bounds: Floats, counts: Floats) -> float:
    """Of one histogram: upper bounds, rising, and cumulative counts.

    >>> bucket_quantile(0.5, np.array([1.0, 2.0, np.inf]), np.array([0.0, 10.0, 10.0]))
    1.5
    """
    if np.isnan(share) or share < 0 or share > 1:
        return float("nan") if np.isnan(share) else float("-inf") if share < 0 else float("inf")
    bounds, first = np.unique(bounds, return_index=True)
    counts = np.maximum.accumulate(np.add.reduceat(counts, first))
    if len(bounds) < 2 or bounds[-1] != np.inf or counts[-1] == 0 or np.isnan(counts[-1]):
        return float("nan")
    rank = share * counts[-1]
    at = int(np.searchsorted(counts[:-1], rank, side="left"))
    if at == len(bounds) - 1:
        return float(bounds[-2])
    if at == 0 and bounds[0] <= 0:
        return float(bounds[0])
    start = float(bounds[at - 1]) if at else 0.0
    below = float(counts[at - 1]) if at else 0.0
    with np.errstate(all="ignore"):
        return float(start + (bounds[at] - start) * np.float64(rank - below) / (counts[at] - below))


def _label_replace(inner: Matrix, target: str, new: str, source: str, pattern: str) -> Matrix:

    safe_matcher(source, "=~", pattern)  # bounds and checks the expression
    if LABEL_NAME.fullmatch(target) is None:
        raise InputError(f"{target[:40]!r} is not a label's name")
    compiled = re.compile(pattern, re.DOTALL)
    labels = []
    for each in inner.labels:
        found = compiled.fullmatch(dict(each).get(source, ""))
        if found is None:
            labels.append(each)
            continue
        value = _expand(new, found)
        kept = {**dict(each), target: value}
        labels.append(tuple(sorted((name, text) for name, text in kept.items() if text)))
    return merged(tuple(labels), inner.values, inner.present)


def _expand(new: str, found: re.Match[str]) -> str:
    """Go's ``$1`` and ``${name}``; an unknown group is empty."""

    def group(match: re.Match[str]) -> str:
        key = match.group(1) or match.group(2)
        if key is None:
            return "$"
        try:
            return found.group(int(key) if key.isdigit() else key) or ""
        except (IndexError, ValueError):
            return ""

    return re.sub(r"\$(?:\$|(\w+)|\{(\w+)\})", group, new)
