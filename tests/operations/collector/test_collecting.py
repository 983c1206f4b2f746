"""A collector's parts together: samples and messages in, incidents out, silence noticed, people told once."""

from __future__ import annotations

import json
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from leptonai.core.clock import FakeClock, SystemClock
from leptonai.core.errors import InputError
from leptonai.core.workspace import Workspace
from leptonai.operations.alarms import Alarm, Subject
from leptonai.operations.collector.collecting import Collecting, CollectorSettings, run_collector
from leptonai.operations.collector.live import Reader
from leptonai.operations.collector.peer_watch import PeerWatch
from leptonai.operations.incidents.channels import Channel, OpsSettings
from leptonai.operations.incidents.incident_store import IncidentStore
from leptonai.operations.ingest.logs import LogLine
from leptonai.operations.ingest.scrape_target import Target
from leptonai.operations.series import Sample, Series
from leptonai.operations.store import MetricsStore

START = 1_700_000_000.0
FALLEN = "NVRM: Xid (PCI:0000:10:1c): 79, pid=1896, GPU has fallen off the bus."


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock(start_seconds=START)


@pytest.fixture
def workspace() -> Iterator[Workspace]:
    with Workspace.open("sqlite://") as opened:
        yield opened


@pytest.fixture
def store(tmp_path: Path, clock: FakeClock) -> Iterator[MetricsStore]:
    with MetricsStore.open(tmp_path / "metrics", clock=clock) as opened:
        yield opened


@pytest.fixture
def told() -> Iterator[tuple[str, list[dict[str, object]]]]:
    """A webhook: its address, and what it was told."""
    bodies: list[dict[str, object]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/", bodies
    server.shutdown()
    thread.join()
    server.server_close()


def collecting(
    store: MetricsStore, workspace: Workspace, clock: FakeClock, settings: CollectorSettings | None = None
) -> Collecting:
    settings = settings or CollectorSettings(store=Path("unused"))
    return Collecting(settings, store, workspace, clock=clock, say=lambda words: pytest.fail(words))


def put(parts: Collecting, at_seconds: float, values: dict[Series, float]) -> None:
    done = parts.intake.put_samples(
        "test", "test", [Sample(each, at_seconds, value) for each, value in values.items()]
    )
    assert not done.num_refused


def test_a_metric_that_becomes_unusual_opens_an_incident_at_its_node_and_its_end_closes_it(
    store: MetricsStore, workspace: Workspace, clock: FakeClock
) -> None:
    parts, random = collecting(store, workspace, clock), np.random.default_rng(1)
    calm, odd = Series.of("fan_hertz", node="a"), Series.of("queue_depth", node="a")
    seen = []
    for second in range(0, 12_000, 5):
        jump = 40.0 if 8_000 <= second < 9_000 else 0.0
        put(parts, START + second, {calm: random.normal(50.0, 1.0), odd: random.normal(10.0, 1.0) + jump})
        clock.advance(5.0)
        if second % 60 == 0:
            parts.turn()
            seen.append(
                [
                    (each.place, each.cause)
                    for each in IncidentStore(workspace, clock=clock).list(only_open=True)
                ]
            )
    (found,) = IncidentStore(workspace, clock=clock).list()
    assert (found.place, found.is_open) == ("a", False)
    assert "queue_depth" in found.title
    assert abs(found.opened_seconds - (START + 8_000)) < 120
    assert seen[8_100 // 60] == [("a", "anomaly")]
    assert not any(seen[: 8_000 // 60])


def test_counters_are_watched_by_their_rate(
    store: MetricsStore, workspace: Workspace, clock: FakeClock
) -> None:
    parts, random, total = collecting(store, workspace, clock), np.random.default_rng(2), 0.0
    for second in range(0, 6_000, 5):
        total += 5 * random.normal(100.0, 3.0)
        put(parts, START + second, {Series.of("bytes_total", node="a"): total})
        clock.advance(5.0)
        if second % 60 == 0:
            parts.turn()
    assert not IncidentStore(workspace, clock=clock).list()


def test_a_node_that_falls_silent_is_an_incident_until_it_is_heard_again(
    store: MetricsStore, workspace: Workspace, clock: FakeClock
) -> None:
    parts = collecting(store, workspace, clock)
    incidents = IncidentStore(workspace, clock=clock)
    up, gap = Series.of("lepton_agent_up", node="a"), Series.of("lepton_agent_expected_gap_seconds", node="a")

    def hear(value: float) -> None:
        put(parts, clock.now_seconds(), {up: value, gap: 6.0})
        parts.turn()

    hear(1.0)
    clock.advance(17.0)
    parts.turn()
    assert not incidents.list()
    clock.advance(10.0)
    parts.turn()
    (found,) = incidents.list(only_open=True)
    assert (found.cause, found.place) == ("node_silent", "a")
    hear(1.0)
    assert not incidents.list(only_open=True)
    clock.advance(1.0)
    hear(0.0)
    clock.advance(1000.0)
    parts.turn()
    assert not incidents.list(only_open=True), "who says goodbye is not silent"


def test_a_message_becomes_an_incident_and_people_are_told_once_of_its_begin(
    store: MetricsStore, workspace: Workspace, clock: FakeClock, told: tuple[str, list[dict[str, object]]]
) -> None:
    url, bodies = told
    ops = OpsSettings(channels=(Channel(name="hook", kind="webhook", url=url),))
    parts = collecting(store, workspace, clock, CollectorSettings(store=Path("unused"), ops=ops))
    said = LogLine(at_seconds=START, origin="kernel", severity="err", message=FALLEN, labels={"node": "a"})
    parts.take_messages([said, said])
    parts.turn()
    parts.desk.call()
    parts.desk.call()
    assert [each["change"] for each in bodies] == ["opened"]
    assert "a/0000:10:1c" in str(bodies[0]["headline"])
    again = collecting(store, workspace, clock, CollectorSettings(store=Path("unused"), ops=ops))
    assert again.desk.call() == 0, "a collector that starts anew does not repeat what was told"


def test_incidents_that_a_run_wrote_are_told_too(
    store: MetricsStore, workspace: Workspace, clock: FakeClock, told: tuple[str, list[dict[str, object]]]
) -> None:
    url, bodies = told
    ops = OpsSettings(channels=(Channel(name="hook", kind="webhook", url=url),))
    parts = collecting(store, workspace, clock, CollectorSettings(store=Path("unused"), ops=ops))
    alarm = Alarm(
        kind="run_failed", subject=Subject("run", "r1"), severity="critical", at_seconds=START,
        since_seconds=START, message="the run failed", run_id="r1",
    )  # fmt: skip
    IncidentStore(workspace, clock=clock).take(alarm)
    parts.desk.call()
    assert [each["headline"] for each in bodies] == ["[critical] new: the run failed"]


def test_the_machine_that_is_not_like_its_peers_is_named(
    store: MetricsStore, workspace: Workspace, clock: FakeClock
) -> None:
    settings = CollectorSettings(store=Path("unused"), peers="gpu-[0-9]+")
    parts, random = collecting(store, workspace, clock, settings), np.random.default_rng(3)
    incidents, before = IncidentStore(workspace, clock=clock), None
    for step in range(180):
        now = START + 15.0 * step
        values = {Series.of("heat_celsius", node=f"gpu-{n}"): random.normal(60.0, 1.0) for n in range(16)}
        values |= {Series.of("busy_ratio", node=f"gpu-{n}"): random.normal(0.9, 0.01) for n in range(16)}
        if step > 120:
            values[Series.of("heat_celsius", node="gpu-5")] += 8.0
        put(parts, now, {**values, Series.of("heat_celsius", node="head"): 30.0})
        clock.advance(15.0)
        parts.turn()
        if step == 120:
            before = incidents.list()
    assert not before
    odd = [each for each in incidents.list(only_open=True) if each.cause == "odd_one_out"]
    assert [each.place for each in odd] == ["gpu-5"]
    assert "heat_celsius" in odd[0].title


def test_a_pattern_of_peers_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(InputError, match="no regular expression"):
        PeerWatch("gpu-[")


def test_a_collector_listens_scrapes_takes_messages_answers_and_ends(tmp_path: Path) -> None:
    urls: list[str] = []
    live: list[dict[str, float]] = []
    line = json.dumps(
        {"at_seconds": time.time(), "origin": "kernel", "message": FALLEN, "labels": {"node": "a"}}
    )

    def wait(seconds: float) -> bool:
        request = urllib.request.Request(f"{urls[0]}/api/v1/logs", data=line.encode(), method="POST")
        request.add_header("Content-Type", "application/x-ndjson")
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 204
        reader, until = Reader(urls[0]), time.monotonic() + 20
        while not (found := reader.ask("up", "job")) and time.monotonic() < until:
            pass
        live.append(found)
        return True

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    target = Target(
        url=f"http://127.0.0.1:{port}/metrics", job="itself", interval_seconds=1.0, timeout_seconds=1.0
    )
    with Workspace.open(f"sqlite:///{tmp_path}/w.db") as workspace:
        run_collector(
            CollectorSettings(store=tmp_path / "metrics", port=port, targets=(target,)), workspace, wait=wait,
            say=lambda words: None, on_listening=urls.append,
        )  # fmt: skip
        (found,) = IncidentStore(workspace, clock=SystemClock()).list()
    assert found.cause == "xid_79"
    assert "itself" in live[0]
