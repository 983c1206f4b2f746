"""Prometheus remote-read 1.0, the SAMPLES reply: a real Prometheus answers queries from our store.

Source: github.com/prometheus/prometheus, prompb/remote.proto.
"""

from __future__ import annotations

from dataclasses import dataclass

from leptonai.core.errors import InputError
from leptonai.operations.ingest import snappy
from leptonai.operations.ingest.limits import Deadline, IngestLimits, QueryTooLarge
from leptonai.operations.ingest.promql.patterns import safe_matcher
from leptonai.operations.ingest.remote_write import encode_series
from leptonai.operations.ingest.wire import LENGTH, VARINT, bytes_field, fields, read_text, signed
from leptonai.operations.store import Matcher, MetricsStore
from leptonai.operations.store.matchers import OPS

HEADERS = {"Content-Type": "application/x-protobuf", "Content-Encoding": "snappy"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadQuery:
    """One query of a request: samples of matching series between two times, both included."""

    start_ms: int
    end_ms: int
    matchers: tuple[Matcher, ...]


def answer(
    store: MetricsStore, body: bytes, *, limits: IngestLimits, deadline: Deadline | None = None
) -> bytes:
    """The reply's body to a request's body, both snappy blocks.

    Raises:
        InputError: the request is broken.
        QueryTooLarge: it asks for more than the limits allow.
        QueryTooSlow: the deadline has passed.
    """
    data = snappy.unpack(body, limit_bytes=limits.unpacked_bytes)
    queries = [
        _query(data, begin, end)
        for number, kind, begin, end, _ in fields(data, 0, len(data))
        if number == 1 and kind == LENGTH
    ]
    num_series = num_samples = 0
    results = []
    for query in queries:
        parts = []
        for found in store.select(query.matchers, query.start_ms, query.end_ms):
            if deadline is not None:
                deadline.check()
            num_series, num_samples = num_series + 1, num_samples + len(found.times_ms)
            if num_series > limits.query_series or num_samples > limits.query_samples:
                raise QueryTooLarge(
                    "the query touches too many series or samples", hint="narrow its matchers or time"
                )
            pairs = zip(found.times_ms.tolist(), found.values.tolist(), strict=True)
            parts.append(bytes_field(1, encode_series(found.series, pairs)))
        results.append(bytes_field(1, b"".join(parts)))
    return snappy.pack(b"".join(results))


def _query(data: bytes, start: int, end: int) -> ReadQuery:
    times = {1: 0, 2: 0}
    matchers = []
    for number, kind, begin, stop, value in fields(data, start, end):
        if number in times and kind == VARINT:
            times[number] = signed(value)
        elif number == 3 and kind == LENGTH:
            matchers.append(_matcher(data, begin, stop))
    return ReadQuery(start_ms=times[1], end_ms=times[2], matchers=tuple(matchers))


def _matcher(data: bytes, start: int, end: int) -> Matcher:
    kind, texts = 0, {2: "", 3: ""}
    for number, wire, begin, stop, value in fields(data, start, end):
        if number == 1 and wire == VARINT:
            kind = value
        elif number in texts and wire == LENGTH:
            texts[number] = read_text(data, begin, stop)
    if kind >= len(OPS):
        raise InputError(f"unknown kind of matcher {kind}")
    return safe_matcher(texts[2], OPS[kind], texts[3])
