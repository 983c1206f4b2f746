"""Prometheus remote-write 1.0: requests in, and out.

Source: prometheus.io/docs/specs/prw/remote_write_spec. A reply of 2xx or 4xx means "do not send this again", 5xx
means "try later": so only a store that cannot write answers 5xx, and samples that will never be accepted (out of
order, over a limit) answer 400 after the others were stored.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from leptonai.core.errors import InputError
from leptonai.operations.ingest import snappy
from leptonai.operations.ingest.intake import REFUSED_SERIES, Intake, checked_series
from leptonai.operations.ingest.limits import Tally
from leptonai.operations.ingest.wire import (
    LENGTH,
    VARINT,
    bytes_field,
    double_field,
    fields,
    number_field,
    read_text,
    text_field,
)
from leptonai.operations.ingest.write_walk import (
    FROM,
    IRREGULAR,
    LABELS_FROM,
    LABELS_TO,
    NUM_SAMPLES,
    TO,
    Walk,
    walk,
)
from leptonai.operations.series import Series

VERSION_HEADER = "X-Prometheus-Remote-Write-Version"
HEADERS: Mapping[str, str] = {
    "Content-Type": "application/x-protobuf",
    "Content-Encoding": "snappy",
    VERSION_HEADER: "0.1.0",
}
"""What a request must say; 0.1.0 is how the specification names version 1.0."""

KINDS = ("unknown", "counter", "gauge", "histogram", "gaugehistogram", "summary", "info", "stateset")
"""Of a metric, by the numbers of MetricMetadata.MetricType."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricInfo:
    """What a sender says of a metric; ``kind`` is one of :data:`KINDS`."""

    name: str
    kind: str
    unit: str = ""
    help: str = ""


def header_problem(headers: Mapping[str, str]) -> tuple[int, str] | None:
    """Why a request's headers (names in lower case) rule it out, with the HTTP status; None: they do not.

    >>> header_problem({"content-type": "text/plain"})[0]
    415
    """
    kind = headers.get("content-type", "").replace(" ", "").lower()
    if kind.split(";")[0] != "application/x-protobuf":
        return 415, f"expected Content-Type application/x-protobuf, found {kind[:80]!r}"
    if "proto=" in kind and "proto=prometheus.writerequest" not in kind:
        return 415, "only the message prometheus.WriteRequest (remote-write 1.0) is understood"
    if headers.get("content-encoding", "").lower() != "snappy":
        return 415, "expected Content-Encoding snappy"
    version = headers.get(VERSION_HEADER.lower(), "0.1.0")
    if not version.startswith("0.1."):
        return 400, f"expected {VERSION_HEADER} 0.1.0, found {version[:20]!r}"
    return None


def receive(intake: Intake, client: str, body: bytes) -> Tally:
    """Store what a request holds.

    Args:
        intake: the way into the store.
        client: whose limit of series counts.
        body: as sent: a snappy block of a WriteRequest.

    Raises:
        InputError: it is broken; nothing of it is stored.
        Fault: the store cannot write; sending it again may help.
    """
    data = snappy.unpack(body, limit_bytes=intake.limits.unpacked_bytes)
    found = walk(data)
    infos = [_metric_info(data, start, end) for start, end in found.metadata.tolist()]
    keys = _keys(data, found)

    def make(at: int) -> Series:
        row = found.series[at]
        pairs = _labels(data, int(row[FROM]), int(row[TO]))
        return checked_series(pairs, max_labels=intake.limits.labels)

    ids, num_refused = intake.numbers(client, keys, make)
    if num_refused:
        assert (ids == REFUSED_SERIES).any()
    tally = intake.put(
        "remote_write", np.repeat(ids, found.series[:, NUM_SAMPLES]), found.times_ms, found.values
    )
    intake.describe("remote_write", [(info.name, info.kind, info.unit, info.help) for info in infos])
    return tally


def _keys(data: bytes, found: Walk) -> list[bytes]:
    """The bytes of each series' labels: the same bytes are the same series, other bytes may be."""
    keys = [data[start:end] for start, end in found.series[:, LABELS_FROM : LABELS_TO + 1].tolist()]
    for at in np.flatnonzero(found.series[:, IRREGULAR]).tolist():
        row = found.series[at]
        pairs = _labels(data, int(row[FROM]), int(row[TO]))
        keys[at] = b"".join(_label(name, value) for name, value in pairs)
    return keys


def _labels(data: bytes, start: int, end: int) -> list[tuple[str, str]]:
    found = []
    for number, kind, begin, stop, _ in fields(data, start, end):
        if number == 1 and kind == LENGTH:
            texts = {1: "", 2: ""}
            for inner, inner_kind, a, b, _ in fields(data, begin, stop):
                if inner in texts and inner_kind == LENGTH:
                    texts[inner] = read_text(data, a, b)
            found.append((texts[1], texts[2]))
    return found


def _metric_info(data: bytes, start: int, end: int) -> MetricInfo:
    kind, texts = 0, {2: "", 4: "", 5: ""}
    for number, wire, begin, stop, value in fields(data, start, end):
        if number == 1 and wire == VARINT:
            kind = value
        elif number in texts and wire == LENGTH:
            texts[number] = read_text(data, begin, stop)
    if not texts[2]:
        raise InputError("metadata without a metric's name")
    return MetricInfo(
        name=texts[2], kind=KINDS[kind] if kind < len(KINDS) else "unknown", unit=texts[5], help=texts[4]
    )


def _label(name: str, value: str) -> bytes:
    return bytes_field(1, text_field(1, name) + text_field(2, value))


def encode_series(series: Series, samples: Iterable[tuple[int, float]]) -> bytes:
    """One TimeSeries message of (milliseconds since 1970, value) pairs."""
    labels = b"".join(_label(name, value) for name, value in series.labels)
    points = (bytes_field(2, double_field(1, value) + number_field(2, time_ms)) for time_ms, value in samples)
    return labels + b"".join(points)


def encode_write_request(
    series: Iterable[tuple[Series, Sequence[tuple[int, float]]]], infos: Iterable[MetricInfo] = ()
) -> bytes:
    """The body of a remote-write request, compressed; send it with :data:`HEADERS`.

    Args:
        series: each with its (milliseconds since 1970, value) pairs, rising in time.
        infos: of metrics.
    """
    parts = [bytes_field(1, encode_series(each, samples)) for each, samples in series]
    for info in infos:
        kind = KINDS.index(info.kind) if info.kind in KINDS else 0
        message = number_field(1, kind) + text_field(2, info.name) + text_field(4, info.help)
        parts.append(bytes_field(3, message + text_field(5, info.unit)))
    return snappy.pack(b"".join(parts))
