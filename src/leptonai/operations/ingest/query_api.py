"""The part of Prometheus' HTTP API that Grafana's Prometheus data source uses, as pure functions of parameters.

Source: prometheus.io/docs/prometheus/latest/querying/api.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonai.core.clock import Clock
from leptonai.core.errors import InputError
from leptonai.operations.ingest.exposition import format_value
from leptonai.operations.ingest.intake import LABEL_NAME
from leptonai.operations.ingest.limits import Deadline, IngestLimits, QueryTooLarge
from leptonai.operations.ingest.promql.engine import Engine
from leptonai.operations.ingest.promql.lexer import duration_ms
from leptonai.operations.ingest.promql.matrix import Matrix, Scalars
from leptonai.operations.ingest.promql.parser import parse, parse_selector
from leptonai.operations.ingest.promql.syntax import Selector
from leptonai.operations.series import Series
from leptonai.operations.store import MetricsStore

Parameters = Mapping[str, Sequence[str]]
VERSION = "2.42.0"
"""Of Prometheus, whose answers ours equal: Grafana picks its features by it."""
_LATEST_MS = 1 << 53
"""Times beyond this are no longer exact as floats."""


class QueryApi:
    """Answers of the API as JSON-ready ``data``.

    Args:
        store: what is asked.
        limits: of a query.
        clock: for queries that name no time.
    """

    def __init__(self, store: MetricsStore, *, limits: IngestLimits, clock: Clock) -> None:
        self._store, self._limits, self._clock = store, limits, clock

    def query(self, given: Parameters) -> Any:
        """``/api/v1/query``: a value at one time, or the samples of a range selector."""
        at_ms = self._time_ms(given, "time")
        expression = parse(_one(given, "query"))
        engine = self._engine(given, np.array([at_ms], np.int64))
        if isinstance(expression, Selector) and expression.range_ms:
            return {"resultType": "matrix", "result": _raw(engine, expression)}
        found = engine.evaluate(expression)
        if isinstance(found, str):
            return {"resultType": "string", "result": [at_ms / 1000, found]}
        if isinstance(found, Scalars):
            return {"resultType": "scalar", "result": [at_ms / 1000, json_value(found.values[0])]}
        rows = [
            {"metric": dict(labels), "value": [at_ms / 1000, json_value(found.values[row, 0])]}
            for row, labels in enumerate(found.labels)
            if found.present[row, 0]
        ]
        return {"resultType": "vector", "result": rows}

    def query_range(self, given: Parameters) -> Any:
        """``/api/v1/query_range``: values at many times."""
        start, end = self._time_ms(given, "start"), self._time_ms(given, "end")
        step_ms = _step_ms(_one(given, "step"))
        if end < start:
            raise InputError("end lies before start")
        if (end - start) // step_ms >= self._limits.query_points:
            raise InputError(
                f"more than {self._limits.query_points} points a series", hint="use a longer step"
            )
        at_ms = np.arange(start, end + 1, step_ms, dtype=np.int64)
        found = self._engine(given, at_ms).evaluate(parse(_one(given, "query")))
        if isinstance(found, str):
            raise InputError("a range query needs numbers, not a string")
        if isinstance(found, Scalars):
            found = Matrix(((),), found.values[None, :], np.ones((1, len(at_ms)), np.bool_))
        rows = [
            {"metric": dict(labels), "values": _points(at_ms[there], found.values[row][there])}
            for row, labels in enumerate(found.labels)
            if (there := found.present[row]).any()
        ]
        return {"resultType": "matrix", "result": sorted(rows, key=lambda row: sorted(row["metric"].items()))}

    def _engine(self, given: Parameters, at_ms: NDArray[np.int64]) -> Engine:
        text = _first(given, "timeout")
        asked = _seconds(text) if text else math.inf
        deadline = Deadline(self._clock, min(asked, self._limits.query_seconds))
        return Engine(self._store, at_ms, limits=self._limits, deadline=deadline)

    def series(self, given: Parameters) -> Any:
        """``/api/v1/series``: label sets."""
        if not given.get("match[]"):
            raise InputError("match[] is missing")
        return [dict(each.labels) for each in self._matching(given)]

    def labels(self, given: Parameters) -> Any:
        """``/api/v1/labels``: names."""
        if not given.get("match[]"):
            return self._store.label_names()
        return sorted({name for each in self._matching(given) for name, _ in each.labels})

    def label_values(self, name: str, given: Parameters) -> Any:
        """``/api/v1/label/<name>/values``."""
        if LABEL_NAME.fullmatch(name) is None:
            raise InputError(f"{name[:40]!r} is not a label's name")
        if not given.get("match[]"):
            return self._store.label_values(name)
        return sorted({value for each in self._matching(given) if (value := each.get(name))})

    def metadata(self, given: Parameters) -> Any:
        """``/api/v1/metadata``: type, help and unit of metrics."""
        wanted, limit = _first(given, "metric"), _first(given, "limit")
        if limit and not limit.isdecimal():
            raise InputError("limit must be a whole number")
        found = {
            name: [{"type": each.kind, "help": each.help, "unit": each.unit}]
            for name, each in self._store.metadata().items()
            if not wanted or name == wanted
        }
        return dict(list(found.items())[: int(limit)]) if limit else found

    def buildinfo(self) -> Any:
        """``/api/v1/status/buildinfo``."""
        return {
            "version": VERSION,
            "revision": "",
            "branch": "",
            "buildUser": "",
            "buildDate": "",
            "goVersion": "",
        }

    def _matching(self, given: Parameters) -> list[Series]:
        found: dict[Series, None] = {}
        for text in given["match[]"]:
            found.update(dict.fromkeys(self._store.series(parse_selector(text))))
            if len(found) > self._limits.query_series:
                raise QueryTooLarge(
                    f"more than {self._limits.query_series} series match", hint="narrow match[]"
                )
        return sorted(found)

    def _time_ms(self, given: Parameters, name: str) -> int:
        text = _first(given, name)
        if not text:
            if name != "time":
                raise InputError(f"{name} is missing")
            return round(self._clock.now_seconds() * 1000)
        return time_ms(text)


def time_ms(text: str) -> int:
    """Milliseconds since 1970, of seconds or of RFC 3339.

    Raises:
        InputError: it is neither.

    >>> time_ms("1.5"), time_ms("1970-01-01T00:00:02Z")
    (1500, 2000)
    """
    try:
        seconds = float(text)
    except ValueError:
        try:
            when = datetime.fromisoformat(text)
            seconds = when.replace(tzinfo=when.tzinfo or UTC).timestamp()
        except (ValueError, OverflowError):
            raise InputError(f"{text[:40]!r} is not a time", hint="seconds since 1970, or RFC 3339") from None
    if not math.isfinite(seconds) or abs(seconds) * 1000 > _LATEST_MS:
        raise InputError(f"{text[:40]!r} is not a time")
    return round(seconds * 1000)


def _seconds(text: str) -> float:
    """A duration: seconds, or such as 5m."""
    plain = re.fullmatch(r"\d+(?:\.\d*)?(?:[eE][+-]?\d{1,2})?", text, re.ASCII)
    return float(text) if plain else duration_ms(text) / 1000.0


def _step_ms(text: str) -> int:
    step = _seconds(text) * 1000
    if not 1 <= step <= _LATEST_MS:
        raise InputError("step must be at least a millisecond")
    return round(step)


def _one(given: Parameters, name: str) -> str:
    text = _first(given, name)
    if not text:
        raise InputError(f"{name} is missing")
    return text


def _first(given: Parameters, name: str) -> str:
    return next(iter(given.get(name, ())), "")


def json_value(value: float) -> str:
    """A number as the API writes it: a string, whole numbers without a point.

    >>> json_value(2.0), json_value(0.5), json_value(math.inf)
    ('2', '0.5', '+Inf')
    """
    text = format_value(value)
    return text.removesuffix(".0")


def _points(at_ms: NDArray[np.int64], values: NDArray[np.float64]) -> list[list[Any]]:
    pairs = zip(at_ms.tolist(), values.tolist(), strict=True)
    return [[time / 1000, json_value(value)] for time, value in pairs]


def _raw(engine: Engine, selector: Selector) -> list[Any]:
    rows = []
    for each in engine.samples(selector, selector.range_ms):
        good = ~each.stale
        if good.any():
            rows.append(
                {"metric": dict(each.labels), "values": _points(each.times_ms[good], each.values[good])}
            )
    return rows
