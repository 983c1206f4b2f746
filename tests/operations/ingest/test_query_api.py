"""The query API without a server, and its envelope with one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.core.clock import FakeClock
from leptonai.core.errors import InputError
from leptonai.operations.ingest.access import Access
from leptonai.operations.ingest.intake import Intake
from leptonai.operations.ingest.limits import IngestLimits
from leptonai.operations.ingest.promql.parser import parse
from leptonai.operations.ingest.promql.syntax import Unsupported
from leptonai.operations.ingest.query_api import QueryApi
from leptonai.operations.ingest.server import IngestServer, make_app
from leptonai.operations.series import STALE_NAN, Series
from leptonai.operations.store import MetricsStore

NOW_SECONDS = 1_700_000_000.0
NOW_MS = int(NOW_SECONDS * 1000)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MetricsStore]:
    folder = tmp_path_factory.mktemp("store")
    with MetricsStore.open(folder, clock=FakeClock(start_seconds=NOW_SECONDS)) as opened:
        for job, slope in (("a", 2.0), ("b", 4.0)):
            number = opened.series_id(Series.of("jobs_total", job=job))
            times = np.arange(NOW_MS - 60_000, NOW_MS + 1, 10_000)
            opened.append(np.full(len(times), number), times, slope * np.arange(len(times)))
        number = opened.series_id(Series.of("gone", job="a"))
        opened.append(
            np.array([number, number]), np.array([NOW_MS - 10_000, NOW_MS - 5000]), np.array([1.0, STALE_NAN])
        )
        opened.set_metadata("jobs_total", "counter", "", "Jobs.")
        yield opened


def api_of(store: MetricsStore, **limits: int) -> QueryApi:
    return QueryApi(store, limits=IngestLimits(**limits), clock=FakeClock(start_seconds=NOW_SECONDS))


def value_of(store: MetricsStore, query: str) -> dict[str, str]:
    found = api_of(store).query({"query": [query]})
    if found["resultType"] == "scalar":
        return {"": found["result"][1]}
    return {row["metric"].get("job", ""): row["value"][1] for row in found["result"]}


@pytest.mark.parametrize(
    ("query", "expected"),
    [("jobs_total", {"a": "12", "b": "24"}), ("gone", {}), ("count_over_time(gone[1m])", {"a": "1"}),
     ("rate(jobs_total[1m])", {"a": "0.2", "b": "0.4"}), ("sum(jobs_total)", {"": "36"}),
     ('jobs_total{job=~"a|c"} offset 10s', {"a": "10"}), ("topk(1, jobs_total)", {"b": "24"}),
     ("jobs_total > 20", {"b": "24"}), ("jobs_total > bool 20", {"a": "0", "b": "1"}),
     ("-2 ^ 2", {"": "-4"}), ("2 ^ 3 ^ 2", {"": "512"}), ("1 + 2 * 3 % 4", {"": "3"}),
     ("jobs_total / on (job) jobs_total", {"a": "1", "b": "1"}),
     ("max by (job) (jobs_total) - min without (x) (jobs_total)", {"a": "0", "b": "0"}),
     ("clamp(jobs_total, 13, 20)", {"a": "13", "b": "20"}), ("absent(nothing)", {"": "1"}),
     ("jobs_total and gone", {}), ("jobs_total unless jobs_total{job='a'}", {"b": "24"}),
     ("gone or vector(3)", {"": "3"}), ("irate(jobs_total[1m])", {"a": "0.2", "b": "0.4"}),
     ("max_over_time(jobs_total[20s])", {"a": "12", "b": "24"}), ("scalar(sum(jobs_total))", {"": "36"})],
)  # fmt: skip
def test_queries_are_answered(store: MetricsStore, query: str, expected: dict[str, str]) -> None:
    assert value_of(store, query) == expected


def test_a_range_has_a_value_at_each_step(store: MetricsStore) -> None:
    found = api_of(store).query_range(
        {
            "query": ["sum(jobs_total)"],
            "start": [str(NOW_SECONDS - 20)],
            "end": [str(NOW_SECONDS)],
            "step": ["10s"],
        }
    )
    assert found["result"][0]["values"] == [
        [NOW_SECONDS - 20, "24"], [NOW_SECONDS - 10, "30"], [NOW_SECONDS, "36"]]  # fmt: skip


@pytest.mark.parametrize(
    ("query", "names"),
    [("predict_linear(a[5m], 1)", "predict_linear"), ("a * on (b) group_left c", "group_left"),
     ("max_over_time(rate(a[1m])[5m:1m])", "subqueries"), ("a @ 5", "@"), ("a atan2 b", "atan2")],
)  # fmt: skip
def test_what_is_not_supported_is_named(query: str, names: str) -> None:
    with pytest.raises(Unsupported, match=names):
        parse(query)


@pytest.mark.parametrize(
    "query",
    ["", "a b", "a{", "{}", '{a=~".*"}', "rate(a)", "a[5m]", "sum(1)", "1 > 2", "foo(a)", "a[0s]", "(" * 200 + "1",
     "-" * 200 + "1", "1" + "^1" * 200, 'a{b=~"("}', "jobs_total + ignoring (job) jobs_total", '"x" + 1', '"\\q"',
     '"\\UFFFFFFFF"', "a offset 5m offset 5m", "a and 1", "clamp(a)"],
)  # fmt: skip
def test_what_is_no_query_is_refused(store: MetricsStore, query: str) -> None:
    given = {"query": [query], "start": [str(NOW_SECONDS)], "end": [str(NOW_SECONDS)], "step": ["1"]}
    with pytest.raises(InputError):
        api_of(store).query_range(given)


def test_a_query_is_bounded(store: MetricsStore) -> None:
    with pytest.raises(InputError, match="too many"):
        api_of(store, query_series=1).query({"query": ["jobs_total"]})
    with pytest.raises(InputError, match="longer step"):
        api_of(store).query_range({"query": ["1"], "start": ["0"], "end": ["1e6"], "step": ["1"]})


_PIECES = st.sampled_from(
    ["sum", "rate", "(", ")", "jobs_total", "[1m]", "{job='a'}", "+", "^", "-", "by", "on", "bool", "==", "and", "1",
     "offset", "5m", ",", "topk", "histogram_quantile", "clamp", "'x'", "NaN", "label_replace", "%", "absent",
     "quantile"]
)  # fmt: skip


@given(st.lists(_PIECES, max_size=9).map(" ".join) | st.text(max_size=30))
def test_any_query_is_answered_or_refused(store: MetricsStore, query: str) -> None:
    with contextlib.suppress(InputError):
        api_of(store).query({"query": [query]})


def test_the_envelope_is_prometheus(store: MetricsStore) -> None:
    clock = FakeClock(start_seconds=NOW_SECONDS)
    intake, access = Intake(store, limits=IngestLimits(), clock=clock), Access()
    with (
        IngestServer(make_app(intake, access=access), access=access) as server,
        httpx.Client(base_url=server.url, trust_env=False) as http,
    ):
        found = http.post("/api/v1/query", data={"query": "sum(jobs_total)"}).json()
        assert found["data"]["result"][0]["value"] == [NOW_SECONDS, "36"]
        assert http.get("/api/v1/labels").json()["data"] == ["__name__", "job"]
        assert http.get("/api/v1/label/job/values").json()["data"] == ["a", "b"]
        matched = http.get("/api/v1/series", params={"match[]": "gone"}).json()["data"]
        assert matched == [{"__name__": "gone", "job": "a"}]
        assert http.get("/api/v1/metadata").json()["data"]["jobs_total"][0]["type"] == "counter"
        assert http.get("/api/v1/status/buildinfo").json()["status"] == "success"
        bad = http.get("/api/v1/query", params={"query": "a @ 1"})
        assert (bad.status_code, bad.json()["errorType"]) == (422, "execution")
        assert http.get("/api/v1/query", params={"query": "a{"}).status_code == 400
