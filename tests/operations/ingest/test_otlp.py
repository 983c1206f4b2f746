"""OpenTelemetry's metrics over real connections: names, values, kinds refused, broken requests."""

from __future__ import annotations

import contextlib
import gzip
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonai.core.clock import FakeClock
from leptonai.core.errors import InputError
from leptonai.operations.ingest import otlp
from leptonai.operations.ingest.access import Access
from leptonai.operations.ingest.intake import Intake
from leptonai.operations.ingest.limits import IngestLimits
from leptonai.operations.ingest.otlp_names import label_name, metric_name
from leptonai.operations.ingest.server import IngestServer, make_app
from leptonai.operations.series import STALE_NAN
from leptonai.operations.store import MetricsStore

pytest.importorskip("opentelemetry.proto.collector.metrics.v1.metrics_service_pb2")
from google.protobuf import json_format
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
    ExportMetricsServiceResponse,
)

NOW_SECONDS = 1_700_000_000.0
NOW_NS = int(NOW_SECONDS) * 10**9
DELTA, CUMULATIVE = 1, 2


@pytest.fixture
def intake(tmp_path: Path) -> Iterator[Intake]:
    clock = FakeClock(start_seconds=NOW_SECONDS)
    with MetricsStore.open(tmp_path / "store", clock=clock) as store:
        yield Intake(store, limits=IngestLimits(body_bytes=100_000), clock=clock)


@pytest.fixture
def http(intake: Intake) -> Iterator[httpx.Client]:
    access = Access(write_token="writer")
    headers = {"Authorization": "Bearer writer"}
    with (
        IngestServer(make_app(intake, access=access), access=access) as server,
        httpx.Client(base_url=server.url, headers=headers, trust_env=False, timeout=10.0) as client,
    ):
        yield client


def point(value: float | int, **attributes: str) -> dict[str, Any]:
    kind = {"as_int": value} if isinstance(value, int) else {"as_double": value}
    return {"time_unix_nano": NOW_NS, "attributes": attributes_of(attributes), **kind}


def attributes_of(texts: dict[str, str]) -> list[dict[str, Any]]:
    return [{"key": key, "value": {"string_value": text}} for key, text in texts.items()]


def total(*points: dict[str, Any], temporality: int = CUMULATIVE, monotonic: bool = True) -> dict[str, Any]:
    return {"data_points": points, "aggregation_temporality": temporality, "is_monotonic": monotonic}


def request_of(*metrics: dict[str, Any], **resource: str) -> Any:
    words = {
        "resource_metrics": [
            {
                "resource": {"attributes": attributes_of(resource)},
                "scope_metrics": [{"metrics": [metric_of(each) for each in metrics]}],
            }
        ]
    }
    return json_format.ParseDict(words, ExportMetricsServiceRequest())


def metric_of(words: dict[str, Any]) -> dict[str, Any]:
    return {"name": "m", **words}


EVERYTHING = [
    {"name": "queue.size", "unit": "1", "description": "Waiting.",
     "gauge": {"data_points": [point(0.5, **{"q.n": "a"})]}},
    {"name": "disk.io", "unit": "By", "sum": total(point(7, device="sda"))},
    {"name": "balance", "unit": "{coins}", "sum": total(point(-3), monotonic=False)},
    {"name": "latency", "unit": "s", "histogram": {"aggregation_temporality": CUMULATIVE, "data_points": [
        {"time_unix_nano": NOW_NS, "count": 6, "sum": 4.5, "bucket_counts": [1, 2, 3], "explicit_bounds": [0.1, 10]}]}},
    {"name": "rpc", "unit": "ms", "summary": {"data_points": [
        {"time_unix_nano": NOW_NS, "count": 2, "sum": 3.0, "quantile_values": [{"quantile": 0.5, "value": 1.5}]}]}},
]  # fmt: skip
WHO = {"service.name": "shop", "service.namespace": "eu", "service.instance.id": "i1", "host.name": "h"}
EXPECTED = {
    'queue_size_ratio{instance="i1",job="eu/shop",q_n="a"}': 0.5,
    'disk_io_bytes_total{device="sda",instance="i1",job="eu/shop"}': 7.0,
    'balance{instance="i1",job="eu/shop"}': -3.0,
    'latency_seconds_bucket{instance="i1",job="eu/shop",le="0.1"}': 1.0,
    'latency_seconds_bucket{instance="i1",job="eu/shop",le="10"}': 3.0,
    'latency_seconds_bucket{instance="i1",job="eu/shop",le="+Inf"}': 6.0,
    'latency_seconds_count{instance="i1",job="eu/shop"}': 6.0,
    'latency_seconds_sum{instance="i1",job="eu/shop"}': 4.5,
    'rpc_milliseconds{instance="i1",job="eu/shop",quantile="0.5"}': 1.5,
    'rpc_milliseconds_count{instance="i1",job="eu/shop"}': 2.0,
    'rpc_milliseconds_sum{instance="i1",job="eu/shop"}': 3.0,
    'target_info{host_name="h",instance="i1",job="eu/shop"}': 1.0,
}


def stored(intake: Intake) -> dict[str, float]:
    rows = list(intake.store.select([], 0, 1 << 60))
    assert all(each.times_ms.tolist() == [int(NOW_SECONDS * 1000)] for each in rows)
    return {repr(each.series): float(each.values[0]) for each in rows}


@pytest.mark.parametrize("is_json", [False, True])
@pytest.mark.parametrize("is_packed", [False, True])
def test_all_kinds_come_in(intake: Intake, http: httpx.Client, is_json: bool, is_packed: bool) -> None:
    request = request_of(*EVERYTHING, **WHO)
    body = json_format.MessageToJson(request).encode() if is_json else request.SerializeToString()
    kind = otlp.JSON if is_json else otlp.PROTOBUF
    headers = {"Content-Type": kind, **({"Content-Encoding": "gzip"} if is_packed else {})}
    reply = http.post("/v1/metrics", content=gzip.compress(body) if is_packed else body, headers=headers)
    assert (reply.status_code, reply.headers["Content-Type"]) == (200, kind)
    assert reply.content == (b"{}" if is_json else b"")
    assert stored(intake) == EXPECTED
    kinds = {name: each.kind for name, each in intake.store.metadata().items()}
    assert kinds == {
        "queue_size_ratio": "gauge", "disk_io_bytes_total": "counter", "balance": "gauge",
        "latency_seconds": "histogram", "rpc_milliseconds": "summary", "target_info": "gauge"}  # fmt: skip
    assert intake.totals["otlp", "accepted"] == len(EXPECTED)


def test_what_cannot_be_kept_is_refused_and_counted(intake: Intake, http: httpx.Client) -> None:
    many = {f"l{at}": "x" for at in range(64)}
    request = request_of(
        {"sum": total(point(1), point(2), temporality=DELTA)}, {"sum": total(point(1), temporality=0)},
        {"exponential_histogram": {"data_points": [{"count": 1}]}},
        {"name": "...", "gauge": {"data_points": [point(1)]}},
        {"histogram": {"aggregation_temporality": CUMULATIVE, "data_points": [
            {"time_unix_nano": NOW_NS, "bucket_counts": [1, 2], "explicit_bounds": []},
            {"time_unix_nano": NOW_NS, "bucket_counts": [1, 2, 3], "explicit_bounds": [2.0, 1.0]}]}},
        {"gauge": {"data_points": [{"time_unix_nano": NOW_NS}, point(1, **many), {"as_int": 1}]}},
        {"name": "good", "gauge": {"data_points": [point(4.0)]}},
    )  # fmt: skip
    headers = {"Content-Type": otlp.PROTOBUF}
    reply = http.post("/v1/metrics", content=request.SerializeToString(), headers=headers)
    answer = ExportMetricsServiceResponse.FromString(reply.content)
    assert reply.status_code == 200
    assert answer.partial_success.rejected_data_points == 10
    assert "2 delta temporality" in answer.partial_success.error_message
    counts = {reason: count for (source, reason), count in intake.totals.items() if source == "otlp"}
    assert counts == {
        "accepted": 1, "delta_temporality": 2, "no_temporality": 1, "exponential_histogram": 1, "no_name": 1,
        "broken_histogram": 2, "no_value": 1, "too_many_labels": 1, "too_old": 1}  # fmt: skip
    assert stored(intake) == {"good": 4.0}


def test_a_point_without_a_recorded_value_ends_its_series(intake: Intake) -> None:
    ended = {"time_unix_nano": NOW_NS, "flags": 1}
    request = request_of({"gauge": {"data_points": [ended]}})
    otlp.receive(intake, "a", request.SerializeToString(), {"content-type": otlp.PROTOBUF})
    (found,) = intake.store.select([], 0, 1 << 60)
    assert struct.pack("<d", found.values[0]) == struct.pack("<d", STALE_NAN)


GOOD = request_of({"gauge": {"data_points": [point(1.0)]}}).SerializeToString()


@pytest.mark.parametrize(
    ("content", "headers", "status", "says"),
    [
        (b"\xff\xff", {"Content-Type": otlp.PROTOBUF}, 400, "in protobuf"),
        (GOOD[:-1], {"Content-Type": otlp.PROTOBUF}, 400, "in protobuf"),
        (b"{", {"Content-Type": otlp.JSON}, 400, "in JSON"), (b"\xff", {"Content-Type": otlp.JSON}, 400, "in JSON"),
        (b"[]", {"Content-Type": otlp.JSON}, 400, "in JSON"), (b"[" * 50_000, {"Content-Type": otlp.JSON}, 400, "JSON"),
        (b'{"resourceMetrics": 3}', {"Content-Type": otlp.JSON}, 400, "in JSON"),
        (GOOD, {"Content-Type": "text/plain"}, 415, "expected Content-Type"),
        (GOOD, {"Content-Type": otlp.PROTOBUF, "Content-Encoding": "zstd"}, 415, "expected Content-Encoding"),
        (GOOD, {"Content-Type": otlp.PROTOBUF, "Content-Encoding": "gzip"}, 400, "not gzip"),
        (gzip.compress(bytes(10**6)), {"Content-Type": otlp.PROTOBUF, "Content-Encoding": "gzip"}, 400, "unpacked"),
        (bytes(100_001), {"Content-Type": otlp.PROTOBUF}, 413, "larger than"),
        (GOOD, {"Content-Type": otlp.PROTOBUF, "Authorization": "Bearer no"}, 401, "token"),
    ],
)  # fmt: skip
def test_bad_requests_get_one_sentence(
    intake: Intake, http: httpx.Client, content: bytes, headers: dict[str, str], status: int, says: str
) -> None:
    reply = http.post("/v1/metrics", content=content, headers=headers)
    assert reply.status_code == status
    assert says in reply.text
    assert reply.text.count("\n") == 1
    assert intake.store.stats().num_samples == 0
    if status != 401:
        assert sum(count for (source, _), count in intake.totals.items() if source == "otlp") == 1


def test_a_request_of_too_many_samples_is_refused_whole(intake: Intake) -> None:
    intake.limits = IngestLimits(request_samples=5)
    request = request_of({"gauge": {"data_points": [point(1.0, n=str(at)) for at in range(6)]}})
    with pytest.raises(InputError, match="more than 5 samples"):
        otlp.receive(intake, "a", request.SerializeToString(), {"content-type": otlp.PROTOBUF})
    assert intake.store.stats().num_samples == 0


@given(st.binary(max_size=60), st.integers(0, len(GOOD) - 1))
@settings(max_examples=200)
def test_any_bytes_are_a_request_or_refused(junk: bytes, at: int) -> None:
    for body in (junk, GOOD[:at] + junk + GOOD[at:]):
        for is_json in (False, True):
            with contextlib.suppress(InputError):
                otlp.read_request(body, is_json=is_json)


# Source: the cases of Prometheus' otlptranslator, normalize_name_test.go and normalize_label_test.go.
@pytest.mark.parametrize(
    ("name", "unit", "kind", "expected"),
    [
        ("system.filesystem.usage", "By", "gauge", "system_filesystem_usage_bytes"),
        ("system.network.dropped", "{packets}", "counter", "system_network_dropped_total"),
        ("hw.bytes", "By", "gauge", "hw_bytes"), ("requests.total", "", "counter", "requests_total"),
        ("total.requests", "1", "counter", "requests_total"),
        ("cpu.utilization", "1", "gauge", "cpu_utilization_ratio"),
        ("astro.light.speed_limit", "m/s", "gauge", "astro_light_speed_limit_meters_per_second"),
        ("unsupported.metric.temperature", "°F", "gauge", "unsupported_metric_temperature_F"),
        ("broken.metric.speed", "km/s", "gauge", "broken_metric_speed_km_per_second"),
        ("2xx.count", "", "gauge", "_2xx_count"), ("a__b..c", "s/{x}", "gauge", "a_b_c_seconds"),
        ("é", "", "gauge", ""),
    ],
)  # fmt: skip
def test_names_are_those_of_prometheus(name: str, unit: str, kind: str, expected: str) -> None:
    assert metric_name(name, unit, is_counter=kind == "counter", is_gauge=kind == "gauge") == expected


@given(st.text(max_size=20))
def test_any_attribute_has_a_label_that_may_be_or_none(name: str) -> None:
    from leptonai.operations.ingest.intake import LABEL_NAME

    found = label_name(name)
    assert not found or (LABEL_NAME.fullmatch(found) and found != "__name__")
