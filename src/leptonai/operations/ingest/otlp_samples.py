"""From a request of OpenTelemetry's metrics to samples. Cumulative counts only, no deltas.

Source: opentelemetry.io/docs/specs/otel/compatibility/prometheus_and_openmetrics, opentelemetry/proto/metrics/v1.
"""

from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Any

from leptonai.core.errors import InputError
from leptonai.operations.ingest.exposition import format_value
from leptonai.operations.ingest.otlp_names import label_name, metric_name
from leptonai.operations.series import NAME_LABEL, STALE_NAN, Sample, Series

JOB, NAMESPACE, INSTANCE = "service.name", "service.namespace", "service.instance.id"
TARGET_INFO = "target_info"
_CUMULATIVE = 2  # AggregationTemporality
_DELTA = 1
_NO_VALUE = 1  # DataPointFlags: the series has ended here
_NANOSECONDS_PER_MILLISECOND = 1_000_000

Info = tuple[str, str, str, str]
"""Name, kind, unit and help of a metric."""


@dataclass(slots=True)
class Converted:
    """What a request holds: samples, what is known of metrics, and data points that cannot be kept, by reason."""

    samples: list[Sample] = field(default_factory=list)
    infos: dict[str, Info] = field(default_factory=dict)
    refused: Counter[str] = field(default_factory=Counter)


def convert(request: Any, *, max_samples: int, max_labels: int) -> Converted:
    """The samples of an ExportMetricsServiceRequest.

    Args:
        request: the message.
        max_samples: of a request.
        max_labels: of a series.

    Raises:
        InputError: there are more samples.
    """
    out = _Out(max_samples, max_labels)
    for resource in request.resource_metrics:
        out.begin(resource.resource.attributes)
        for scope in resource.scope_metrics:
            for metric in scope.metrics:
                _metric(metric, out)
        out.end()
    return out.found


class _Out:
    """Collects samples of one resource after the other."""

    def __init__(self, max_samples: int, max_labels: int) -> None:
        self.found = Converted()
        self._max_samples, self._max_labels = max_samples, max_labels
        self._common: dict[str, str] = {}
        self._rest: dict[str, str] = {}
        self._latest_ms = 0

    def begin(self, attributes: Iterable[Any]) -> None:
        texts = {each.key: text_of(each.value) for each in attributes}
        job, namespace = texts.pop(JOB, ""), texts.pop(NAMESPACE, "")
        instance = texts.pop(INSTANCE, "")
        pairs = {"job": f"{namespace}/{job}" if namespace and job else job, "instance": instance}
        self._common = {name: text for name, text in pairs.items() if text}
        self._rest = labels_of(texts)
        self._latest_ms = 0

    def end(self) -> None:
        """What else is known of the resource, once."""
        if self._latest_ms and self._common and self._rest:
            self.add(TARGET_INFO, self._rest, self._latest_ms, 1.0)
            self.found.infos[TARGET_INFO] = (TARGET_INFO, "gauge", "", "What is known of the target.")

    def labels(self, point: Any) -> dict[str, str] | None:
        """Of a data point; None: it has too many, which is counted."""
        found = {**labels_of({each.key: text_of(each.value) for each in point.attributes}), **self._common}
        if len(found) + 2 > self._max_labels:  # the metric's name, and le or quantile
            self.found.refused["too_many_labels"] += 1
            return None
        return found

    def add(self, name: str, labels: Mapping[str, str], time_ms: int, value: float) -> None:
        if len(self.found.samples) >= self._max_samples:
            raise InputError(
                f"the request has more than {self._max_samples} samples", hint="send smaller batches"
            )
        pairs = {**{key: text for key, text in labels.items() if text}, **self._common, NAME_LABEL: name}
        self._latest_ms = max(self._latest_ms, time_ms)
        self.found.samples.append(Sample(Series(tuple(sorted(pairs.items()))), time_ms / 1000, value))


def _metric(metric: Any, out: _Out) -> None:
    kind = metric.WhichOneof("data")
    if kind is None:
        return
    data = getattr(metric, kind)
    reason = _reason(kind, data)
    is_counter = kind == "sum" and data.is_monotonic
    name = metric_name(metric.name, metric.unit, is_counter=is_counter, is_gauge=kind == "gauge")
    if reason or not name:
        out.found.refused[reason or "no_name"] += len(data.data_points)
        return
    ours = "counter" if is_counter else kind if kind in ("histogram", "summary") else "gauge"
    out.found.infos[name] = (name, ours, "", metric.description)
    for point in data.data_points:
        labels = out.labels(point)
        if labels is None:
            continue
        if kind == "histogram":
            _histogram(name, labels, point, out)
        elif kind == "summary":
            _summary(name, labels, point, out)
        else:
            _number(name, labels, point, out)


def _reason(kind: str, data: Any) -> str:
    """Why data points of a metric cannot be kept; empty: they can."""
    if kind == "exponential_histogram":
        return kind
    if kind in ("sum", "histogram") and data.aggregation_temporality != _CUMULATIVE:
        return "delta_temporality" if data.aggregation_temporality == _DELTA else "no_temporality"
    return ""


def _time_ms(point: Any) -> int:
    return int(point.time_unix_nano // _NANOSECONDS_PER_MILLISECOND)


def _number(name: str, labels: dict[str, str], point: Any, out: _Out) -> None:
    given = point.WhichOneof("value")
    if point.flags & _NO_VALUE:
        out.add(name, labels, _time_ms(point), STALE_NAN)
    elif given is None:
        out.found.refused["no_value"] += 1
    else:
        out.add(name, labels, _time_ms(point), float(getattr(point, given)))


def _histogram(name: str, labels: dict[str, str], point: Any, out: _Out) -> None:
    bounds, counts = list(point.explicit_bounds), list(point.bucket_counts)
    if not (len(counts) == len(bounds) + 1 or not counts) or any(
        not low < high for low, high in pairwise(bounds)
    ):
        out.found.refused["broken_histogram"] += 1
        return
    at_ms, is_over = _time_ms(point), bool(point.flags & _NO_VALUE)
    totals = list(accumulate(counts))[:-1]
    rows = [(_le(bound), float(total)) for bound, total in zip(bounds, totals, strict=False)]
    for le, value in [*rows, ("+Inf", float(point.count))]:
        out.add(f"{name}_bucket", {**labels, "le": le}, at_ms, STALE_NAN if is_over else value)
    out.add(f"{name}_count", labels, at_ms, STALE_NAN if is_over else float(point.count))
    if point.HasField("sum"):
        out.add(f"{name}_sum", labels, at_ms, STALE_NAN if is_over else point.sum)


def _summary(name: str, labels: dict[str, str], point: Any, out: _Out) -> None:
    at_ms, is_over = _time_ms(point), bool(point.flags & _NO_VALUE)
    for each in point.quantile_values:
        value = STALE_NAN if is_over else each.value
        out.add(name, {**labels, "quantile": _le(each.quantile)}, at_ms, value)
    out.add(f"{name}_count", labels, at_ms, STALE_NAN if is_over else float(point.count))
    out.add(f"{name}_sum", labels, at_ms, STALE_NAN if is_over else point.sum)


def _le(bound: float) -> str:
    return format_value(bound).removesuffix(".0")


def labels_of(texts: Mapping[str, str]) -> dict[str, str]:
    """Labels of attributes; values of those whose names become the same are joined by ``;``, as Prometheus does.

    >>> labels_of({"b.c": "2", "b_c": "1", "": "x"})
    {'b_c': '2;1'}
    """
    found: dict[str, str] = {}
    for key in sorted(texts):
        if name := label_name(key):
            found[name] = f"{found[name]};{texts[key]}" if name in found else texts[key]
    return found


def text_of(value: Any) -> str:
    """An attribute's value as a label's."""
    plain = _plain(value)
    return plain if isinstance(plain, str) else json.dumps(plain, separators=(",", ":"), ensure_ascii=False)


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return ""
    inner = getattr(value, kind)
    if kind == "array_value":
        return [_plain(each) for each in inner.values]
    if kind == "kvlist_value":
        return {each.key: _plain(each.value) for each in inner.values}
    return base64.b64encode(inner).decode() if kind == "bytes_value" else inner
