"""Queries have limits of time and of samples, and say so as Prometheus does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest

from leptonai.core.clock import FakeClock
from leptonai.core.errors import InputError
from leptonai.operations.ingest import snappy
from leptonai.operations.ingest.access import Access
from leptonai.operations.ingest.intake import Intake
from leptonai.operations.ingest.limits import IngestLimits, QueryTooLarge, QueryTooSlow
from leptonai.operations.ingest.promql.patterns import check_pattern
from leptonai.operations.ingest.promql.syntax import Unsupported
from leptonai.operations.ingest.query_api import QueryApi
from leptonai.operations.ingest.server import IngestServer, make_app
from leptonai.operations.ingest.wire import bytes_field, number_field, text_field
from leptonai.operations.series import Series
from leptonai.operations.store import MetricsStore

NOW_SECONDS = 1_700_000_000.0
NOW_MS = int(NOW_SECONDS * 1000)


class Ticking(FakeClock):
    """Each look at it takes a second."""

    def monotonic_seconds(self) -> float:
        self.advance(1.0)
        return super().monotonic_seconds()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MetricsStore]:
    clock = FakeClock(start_seconds=NOW_SECONDS)
    with MetricsStore.open(tmp_path_factory.mktemp("store"), clock=clock) as opened:
        for job in range(20):
            number = opened.series_id(Series.of("jobs_total", job=str(job)))
            times = np.arange(NOW_MS - 60_000, NOW_MS + 1, 10_000)
            opened.append(np.full(len(times), number), times, np.arange(len(times), dtype=np.float64))
        yield opened


def api_of(store: MetricsStore, **limits: float) -> QueryApi:
    clock = Ticking(start_seconds=NOW_SECONDS)
    return QueryApi(store, limits=IngestLimits(**limits), clock=clock)  # type: ignore[arg-type]


def span(query: str, step: str = "1") -> dict[str, list[str]]:
    return {"query": [query], "start": [str(NOW_SECONDS - 60)], "end": [str(NOW_SECONDS)], "step": [step]}


@pytest.mark.parametrize("query", ["jobs_total", "rate(jobs_total[1m])", "sum(jobs_total) + sum(jobs_total)"])
def test_a_query_ends_when_its_time_is_over(store: MetricsStore, query: str) -> None:
    for give in (api_of(store, query_seconds=5.0).query_range, api_of(store, query_seconds=5.0).query):
        with pytest.raises(QueryTooSlow, match="longer than 5 s"):
            give(span(query))
    assert api_of(store, query_seconds=1000.0).query(span(query))["result"]


def test_a_query_may_ask_for_less_time_and_not_for_more(store: MetricsStore) -> None:
    for asked, seconds in (("3", 3), ("3s", 3), ("9h", 5)):
        with pytest.raises(QueryTooSlow, match=f"longer than {seconds} s"):
            api_of(store, query_seconds=5.0).query({"query": ["jobs_total"], "timeout": [asked]})
    with pytest.raises(InputError):
        api_of(store).query({"query": ["jobs_total"], "timeout": ["x"]})


@pytest.mark.parametrize("query", ["jobs_total", "rate(jobs_total[1m])", "{job!=''}"])
def test_a_query_has_a_limit_of_samples_and_of_values(store: MetricsStore, query: str) -> None:
    with pytest.raises(QueryTooLarge, match="too many series or samples"):
        api_of(store, query_samples=100).query_range(span(query))
    with pytest.raises(QueryTooLarge, match="too many values"):  # 140 samples, 1220 values
        api_of(store, query_samples=1000).query_range(span(query))
    assert api_of(store, query_samples=1000).query_range(span(query, "10"))["result"]


def test_errors_are_those_of_prometheus(store: MetricsStore) -> None:
    for limits, clock, status, kind in (
        ({"query_seconds": 5.0}, Ticking(start_seconds=NOW_SECONDS), 503, "timeout"),
        ({"query_samples": 10}, FakeClock(start_seconds=NOW_SECONDS), 422, "execution"),
        ({"query_series": 10}, FakeClock(start_seconds=NOW_SECONDS), 422, "execution"),
    ):
        intake = Intake(store, limits=IngestLimits(**limits), clock=clock)
        access = Access()
        matcher = text_field(2, "__name__") + text_field(3, "jobs_total")
        asked = number_field(1, NOW_MS - 60_000) + number_field(2, NOW_MS) + bytes_field(3, matcher)
        with (
            IngestServer(make_app(intake, access=access), access=access) as server,
            httpx.Client(base_url=server.url, trust_env=False, timeout=10.0) as http,
        ):
            reply = http.get("/api/v1/query", params={"query": "jobs_total"})
            assert (reply.status_code, reply.json()["errorType"]) == (status, kind)
            assert reply.json()["status"] == "error"
            read = http.post("/api/v1/read", content=snappy.pack(bytes_field(1, asked)))
            assert read.status_code == status
            assert read.text.count("\n") == 1


def test_limits_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError):
        IngestLimits(query_seconds=0.0)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+b",
        "(a|a)*b",
        "((a*)b)*",
        "(?:a?){9}",
        "(x[)]+|y)+",
        r"(\\(+)+",
        "[]a]*.*.*.*.*x",
        "(a|(b|c)+)",
        "((a|b))+",
    ],
)
def test_an_expression_that_could_take_for_ever_is_refused(store: MetricsStore, pattern: str) -> None:
    with pytest.raises(Unsupported):
        check_pattern(pattern)
    for query in ("jobs_total{job=~'%s'}", "label_replace(jobs_total, 'x', '$1', 'job', '%s')"):
        with pytest.raises(InputError):
            api_of(store).query({"query": [query % pattern.replace("\\", "\\\\")]})


@pytest.mark.parametrize(
    "pattern",
    ["a|b|c", ".*", ".+", "a.*|b.*|c.*|d.*|e.*|f.*", "(foo|bar)-[0-9]+", "[+*(|]+(ab)+", r"\(a\+", "(.*):[0-9]{2,5}",
     "((a|b)x)?", "gpu-[0-9]+", "", "(", ")+"],
)  # fmt: skip
def test_ordinary_expressions_are_let_through(pattern: str) -> None:
    check_pattern(pattern)
