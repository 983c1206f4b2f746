"""Evaluates a query over the store, at one time or many at once.

Instant selectors look back five minutes; a staleness marker ends a series at once. Source: Prometheus 2.42.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.operations.ingest.limits import Deadline, IngestLimits, QueryTooLarge
from leptonai.operations.ingest.promql.aggregate import aggregate
from leptonai.operations.ingest.promql.functions import Argument, call
from leptonai.operations.ingest.promql.matrix import Labels, Matrix, Scalars, empty, present_rows
from leptonai.operations.ingest.promql.operators import combine
from leptonai.operations.ingest.promql.parser import RANGE_FUNCTIONS
from leptonai.operations.ingest.promql.syntax import (
    Aggregate,
    Binary,
    Call,
    Expression,
    Negated,
    Number,
    Selector,
    Text,
    Unsupported,
)
from leptonai.operations.ingest.promql.windows import over_windows
from leptonai.operations.series import STALE_NAN
from leptonai.operations.store import MetricsStore

LOOKBACK_MS = 300_000
_STALE_BITS = struct.unpack("<q", struct.pack("<d", STALE_NAN))[0]


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """What one series has in a stretch of time, staleness markers included."""

    labels: Labels
    times_ms: NDArray[np.int64]
    values: NDArray[np.float64]
    stale: NDArray[np.bool_]


class Engine:
    """Evaluates expressions at given times.

    Args:
        store: what to ask.
        at_ms: evaluation times, rising, milliseconds since 1970.
        limits: of series and samples a query may touch.
        deadline: when it must have ended; None: it may take its time.
    """

    def __init__(
        self,
        store: MetricsStore,
        at_ms: NDArray[np.int64],
        *,
        limits: IngestLimits,
        deadline: Deadline | None = None,
    ) -> None:
        self._store, self._at_ms, self._limits = store, at_ms, limits
        self._check: Callable[[], None] = (lambda: None) if deadline is None else deadline.check
        self._num_samples = 0

    def evaluate(self, expression: Expression) -> Matrix | Scalars | str:
        """The value of an expression.

        Raises:
            InputError: it cannot be evaluated.
            QueryTooLarge: it touches more than the limits allow.
            QueryTooSlow: the deadline has passed.
        """
        self._check()
        match expression:
            case Number(value):
                return Scalars(np.full(len(self._at_ms), value))
            case Text(value):
                return value
            case Selector():
                return self._latest(expression)
            case Negated(inner):
                found = self._number_or_vector(inner)
                return Scalars(-found.values) if isinstance(found, Scalars) else found.mapped(np.negative)
            case Binary():
                return combine(
                    expression,
                    self._number_or_vector(expression.left),
                    self._number_or_vector(expression.right),
                )
            case Aggregate():
                return self._aggregate(expression)
            case Call():
                return self._call(expression)
            case _:
                assert_never(expression)

    def _number_or_vector(self, expression: Expression) -> Matrix | Scalars:
        found = self.evaluate(expression)
        if isinstance(found, str):
            raise InputError("a string does not belong here")
        return found

    def _aggregate(self, expression: Aggregate) -> Matrix:
        inner = self.evaluate(expression.inner)
        parameter = None if expression.parameter is None else self.evaluate(expression.parameter)
        if not isinstance(inner, Matrix) or not (parameter is None or isinstance(parameter, Scalars)):
            raise InputError(f"{expression.name} does not take these arguments")
        return aggregate(
            expression.name, inner, expression.labels, drop=expression.without, parameter=parameter
        )

    def _call(self, expression: Call) -> Matrix | Scalars:
        if expression.name in RANGE_FUNCTIONS:
            return self._over_range(expression)
        if expression.name == "time" and not expression.arguments:
            return Scalars(self._at_ms / 1000.0)
        if expression.name == "timestamp" and len(expression.arguments) == 1:
            return self._timestamp(expression.arguments[0])
        arguments: list[Argument] = [self.evaluate(each) for each in expression.arguments]
        if expression.name == "absent" and len(arguments) == 1 and isinstance(arguments[0], Matrix):
            return self._absent(expression.arguments[0], arguments[0])
        return call(expression.name, arguments)

    def _timestamp(self, inner: Expression) -> Matrix:
        if isinstance(inner, Selector):
            return self._latest(inner, times=True).nameless()
        found = self.evaluate(inner)
        if not isinstance(found, Matrix):
            raise InputError("timestamp needs a vector")
        return found.mapped(lambda values: np.broadcast_to(self._at_ms / 1000.0, values.shape).copy())

    def _absent(self, asked: Expression, found: Matrix) -> Matrix:
        labels: dict[str, str] = {}
        if isinstance(asked, Selector):
            names = [matcher.name for matcher in asked.matchers]
            labels = {
                each.name: each.value
                for each in asked.matchers
                if each.op == "=" and names.count(each.name) == 1 and each.name != "__name__" and each.value
            }
        missing: NDArray[np.bool_] = np.logical_not(found.present.any(axis=0))
        if not missing.any():
            return empty(len(self._at_ms))
        return Matrix((tuple(sorted(labels.items())),), np.ones((1, len(missing))), missing[None, :])

    def samples(self, selector: Selector, back_ms: int) -> list[Samples]:
        """Samples of matching series from ``back_ms`` before the first evaluation to the last."""
        start = int(self._at_ms[0]) - selector.offset_ms - back_ms
        end = int(self._at_ms[-1]) - selector.offset_ms
        rows: list[Samples] = []
        for found in self._store.select(selector.matchers, start, end):
            self._check()
            self._num_samples += len(found.times_ms)
            if len(rows) >= self._limits.query_series or self._num_samples > self._limits.query_samples:
                raise QueryTooLarge(
                    "the query touches too many series or samples", hint="narrow its matchers or its time"
                )
            values = np.ascontiguousarray(found.values, np.float64)
            stale = values.view(np.int64) == _STALE_BITS
            rows.append(Samples(found.series.labels, found.times_ms, values, stale))
        return rows

    def _check_table(self, num_rows: int) -> None:
        if num_rows * len(self._at_ms) > self._limits.query_samples:
            raise QueryTooLarge(
                "the answer would have too many values", hint="narrow the query, or use a longer step"
            )

    def _latest(self, selector: Selector, *, times: bool = False) -> Matrix:
        if selector.range_ms:
            raise InputError("a range [...] belongs inside a function such as rate")
        rows = self.samples(selector, LOOKBACK_MS)
        at: NDArray[np.int64] = self._at_ms - selector.offset_ms
        self._check_table(len(rows))
        values = np.zeros((len(rows), len(self._at_ms)))
        present = np.zeros(values.shape, np.bool_)
        for row, each in enumerate(rows):
            last = np.searchsorted(each.times_ms, at, side="right") - 1
            safe = np.maximum(last, 0)
            present[row] = (last >= 0) & (each.times_ms[safe] >= at - LOOKBACK_MS) & ~each.stale[safe]
            values[row] = each.times_ms[safe] / 1000.0 if times else each.values[safe]
        return present_rows(Matrix(tuple(each.labels for each in rows), values, present))

    def _over_range(self, expression: Call) -> Matrix:
        name, arguments = expression.name, list(expression.arguments)
        share = 0.0
        if name == "quantile_over_time" and len(arguments) == 2:
            first = arguments.pop(0)
            if not isinstance(first, Number):
                raise Unsupported(
                    "quantile_over_time with a quantile that is not written out is not supported"
                )
            share = first.value
        if len(arguments) != 1 or not isinstance(arguments[0], Selector) or not arguments[0].range_ms:
            raise InputError(f"{name} needs a selector with a range", hint=f"such as {name}(a_total[5m])")
        selector = arguments[0]
        at: NDArray[np.int64] = self._at_ms - selector.offset_ms
        labels, values, present = [], [], []
        for each in self.samples(selector, selector.range_ms):
            self._check()
            good = ~each.stale
            found, there = over_windows(
                name, each.times_ms[good], each.values[good], at, selector.range_ms, share
            )
            if there.any():
                labels.append(each.labels)
                values.append(found)
                present.append(there)
                self._check_table(len(labels))
        if not labels:
            return empty(len(at))
        matrix = Matrix(tuple(labels), np.stack(values), np.stack(present))
        return matrix if name == "last_over_time" else matrix.nameless()
