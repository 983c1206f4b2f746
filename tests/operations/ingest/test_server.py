"""The server over real loopback connections: rights, limits, replies, and a clean end."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from leptonai.core.clock import SystemClock
from leptonai.core.errors import InputError
from leptonai.operations.ingest import remote_write
from leptonai.operations.ingest.access import Access
from leptonai.operations.ingest.intake import Intake
from leptonai.operations.ingest.limits import IngestLimits
from leptonai.operations.ingest.openmetrics import parse
from leptonai.operations.ingest.remote_write import HEADERS, encode_write_request
from leptonai.operations.ingest.server import IngestServer, make_app
from leptonai.operations.series import Series
from leptonai.operations.store import Matcher, MetricsStore

TOKENS = Access(read_token="reader", write_token="writer")


@pytest.fixture
def intake(tmp_path: Path) -> Iterator[Intake]:
    with MetricsStore.open(tmp_path / "store", clock=SystemClock()) as store:
        yield Intake(store, limits=IngestLimits(body_bytes=100_000), clock=SystemClock())


def client(server: IngestServer, token: str = "") -> httpx.Client:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return httpx.Client(base_url=server.url, headers=headers, trust_env=False, timeout=10.0)


def one_sample(value: float = 1.0) -> bytes:
    now_ms = int(SystemClock().now_seconds() * 1000)
    return encode_write_request([(Series.of("m", job="a"), [(now_ms, value)])])


def test_samples_come_in_and_the_page_counts_them(intake: Intake) -> None:
    before = threading.active_count()
    with IngestServer(make_app(intake, access=Access()), access=Access()) as server, client(server) as http:
        assert http.get("/healthz").text == "ok\n"
        reply = http.post("/api/v1/write", content=one_sample(), headers=dict(HEADERS))
        assert (reply.status_code, reply.headers["X-Prometheus-Remote-Write-Samples-Written"]) == (204, "1")
        page = http.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
        families = {each.name: each for each in parse(page.text, openmetrics=True)}
        assert families["lepton_ingest_samples_accepted"].points[0].value == 1.0
        assert parse(http.get("/metrics").text, openmetrics=False)
    (found,) = intake.store.select([Matcher("job", "=", "a")], 0, 1 << 60)
    assert found.values.tolist() == [1.0]
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/healthz", trust_env=False)
    assert threading.active_count() <= before + 1  # a worker thread may linger until the process ends


def test_each_token_opens_only_its_own(intake: Intake) -> None:
    with IngestServer(make_app(intake, access=TOKENS), access=TOKENS) as server:
        for token, read, write in (
            ("", 401, 401),
            ("reader", 200, 401),
            ("writer", 401, 204),
            ("x", 401, 401),
        ):
            with client(server, token) as http:
                assert http.get("/metrics").status_code == read
                reply = http.post("/api/v1/write", content=one_sample(), headers=dict(HEADERS))
                assert reply.status_code == write
                assert http.get("/healthz").status_code == 200


def test_without_a_token_only_loopback_names_are_answered(intake: Intake) -> None:
    with IngestServer(make_app(intake, access=Access()), access=Access()) as server, client(server) as http:
        assert http.get("/metrics", headers={"Host": "rebound.example.org"}).status_code == 401


def test_listening_beyond_loopback_needs_tokens(intake: Intake) -> None:
    app = make_app(intake, access=Access())
    for access in (Access(), Access(write_token="a"), Access(read_token="a")):
        with pytest.raises(InputError, match="token"):
            IngestServer(app, access=access, host="0.0.0.0")
    assert "reader" not in repr(TOKENS)


def test_a_taken_port_is_told(intake: Intake) -> None:
    app = make_app(intake, access=Access())
    with (
        IngestServer(app, access=Access()) as server,
        pytest.raises(InputError, match="cannot listen"),
    ):
        IngestServer(app, access=Access(), port=server.port)


@pytest.mark.parametrize(
    ("content", "headers", "status", "says"),
    [(b"junk", dict(HEADERS), 400, "snappy"), (bytes(200_000), dict(HEADERS), 413, "larger than"),
     (b"", {}, 415, "Content-Type"),
     (b"", {**HEADERS, remote_write.VERSION_HEADER: "9"}, 400, "0.1.0")],
)  # fmt: skip
def test_bad_requests_get_one_sentence(
    intake: Intake, content: bytes, headers: dict[str, str], status: int, says: str
) -> None:
    with IngestServer(make_app(intake, access=Access()), access=Access()) as server, client(server) as http:
        reply = http.post("/api/v1/write", content=content, headers=headers)
        assert reply.status_code == status
        assert says in reply.text
        assert reply.text.count("\n") == 1
        assert 'reason="' in http.get("/metrics").text


def test_samples_refused_are_told_and_not_to_be_sent_again(intake: Intake) -> None:
    far_ms = int(SystemClock().now_seconds() * 1000) + 10**8
    body = encode_write_request([(Series.of("m"), [(far_ms, 1.0)])])
    with IngestServer(make_app(intake, access=Access()), access=Access()) as server, client(server) as http:
        reply = http.post("/api/v1/write", content=body, headers=dict(HEADERS))
    assert (reply.status_code, reply.text) == (400, "1 of 1 samples were refused: 1 too far in future\n")


def test_a_store_that_cannot_write_asks_to_try_again(intake: Intake) -> None:
    from leptonai.core.errors import Fault

    class Broken(MetricsStore):
        def append(self, *_: object) -> object:  # type: ignore[override]
            raise Fault("the disk is full")

    broken = object.__new__(Broken)
    broken.__dict__.update(intake.store.__dict__)
    intake.store = broken
    with IngestServer(make_app(intake, access=Access()), access=Access()) as server, client(server) as http:
        reply = http.post("/api/v1/write", content=one_sample(), headers=dict(HEADERS))
    assert (reply.status_code, reply.text) == (503, "the disk is full\n")
