"""The metrics page: what promtool and our own reader make of it, and who gets it."""

from __future__ import annotations

import http.client
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.core.errors import InputError
from leptonai.operations.agent.catalogue import CATALOGUE
from leptonai.operations.agent.exporter import MAX_REQUESTS, Exporter, families
from leptonai.operations.agent.opened import OPENERS, Sources
from leptonai.operations.agent.source import Place, Reading, SeriesTable
from leptonai.operations.ingest.exposition import Family, write_openmetrics, write_text
from leptonai.operations.ingest.openmetrics import parse

PROMTOOL = shutil.which("promtool")
OPENMETRICS = {"Accept": "application/openmetrics-text; version=1.0.0"}


@contextmanager
def page(found: list[Family], **words: object) -> Iterator[Exporter]:
    exporter = Exporter(lambda: found, **words)  # type: ignore[arg-type]
    exporter.start()
    try:
        yield exporter
    finally:
        exporter.close()
        exporter.close()


def get(exporter: Exporter, path: str = "/metrics", **headers: str) -> tuple[int, str, str]:
    connection = http.client.HTTPConnection("127.0.0.1", exporter.port, timeout=10.0)
    try:
        connection.request(
            "GET", path, headers={name.replace("_", "-"): text for name, text in headers.items()}
        )
        answer = connection.getresponse()
        return answer.status, answer.getheader("Content-Type", ""), answer.read().decode()
    finally:
        connection.close()


def everything() -> list[Family]:
    """A family for every metric that the agent knows, with labels that need escaping."""
    table = SeriesTable({"node": 'a "quoted"\\ \n one'})
    readings = [(table.key(name, device="d"), 1.5) for name in CATALOGUE]
    readings += [(table.with_common(name, {}), 2.0) for name in ("mine", "mine_total")]
    return families(table.series, readings)


def this_node() -> list[Family]:
    """What the sources of this machine say."""
    table = SeriesTable({"node": "a"})
    sources = Sources(Place(table=table), openers=OPENERS, kernel_log=None)
    readings: list[Reading] = [
        each for found in sources.read(0.0, interval_seconds=1.0).values() for each in found
    ]
    sources.close()
    return families(table.series, readings)


@pytest.mark.parametrize("make", [everything, this_node])
def test_promtool_finds_nothing_but_the_names_that_node_exporter_gave(make: object) -> None:
    if PROMTOOL is None:
        pytest.skip("promtool is not installed")
    done = subprocess.run(
        [PROMTOOL, "check", "metrics"],
        input=write_text(make()),
        text=True,
        capture_output=True,
        timeout=20,  # type: ignore[operator]
    )
    theirs = re.compile(
        r"node_(memory|netstat)_\w+ metric names should be written in 'snake_case' not 'camelCase'"
    )
    assert [line for line in done.stderr.splitlines() if not theirs.fullmatch(line)] == []
    assert done.returncode in (0, 3), done.stderr


@pytest.mark.parametrize("make", [everything, this_node])
def test_the_page_reads_back_to_what_was_written(make: object) -> None:
    found: list[Family] = make()  # type: ignore[operator]
    again = parse(write_openmetrics(found), openmetrics=True)
    assert [(each.name, each.kind, each.help, each.unit) for each in again] == [
        (each.name, each.kind, each.help, each.unit) for each in found
    ]
    assert [each.points for each in again] == [each.points for each in found]


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.text(max_size=8), st.floats(allow_nan=False)), max_size=12)
)
def test_any_values_and_labels_read_back(rows: list[tuple[str, str, float]]) -> None:
    table = SeriesTable()
    wanted = {table.with_common(name, {"label": text}): value for name, text, value in rows}
    found = parse(write_openmetrics(families(table.series, wanted.items())), openmetrics=True)
    assert {
        (point.name, dict(point.labels).get("label", "")): point.value
        for each in found
        for point in each.points
    } == {(table.series[key].name, table.series[key].get("label")): value for key, value in wanted.items()}


def test_both_formats_are_served() -> None:
    with page(everything()) as exporter:
        status, kind, text = get(exporter)
        assert (status, text) == (200, write_text(everything()))
        assert kind.startswith("text/plain; version=0.0.4")
        status, kind, text = get(exporter, **OPENMETRICS)
        assert (status, text) == (200, write_openmetrics(everything()))
        assert kind.startswith("application/openmetrics-text; version=1.0.0")
        assert get(exporter, "/healthz")[0] == 200
        assert get(exporter, "/etc/passwd")[0] == 404
        assert get(exporter, "/metrics?name=x")[0] == 200


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:9100", "[::1]:1", "LOCALHOST"])
def test_loopback_names_are_answered(host: str) -> None:
    with page([]) as exporter:
        assert get(exporter, Host=host)[0] == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9100", "127.0.0.1.evil.example", "", "10.0.0.7"]
)
def test_a_web_page_cannot_reach_us_through_a_name_of_its_own(host: str) -> None:
    with page(everything()) as exporter:
        status, _, text = get(exporter, Host=host)
        assert status == 401
        assert "node_" not in text


def test_a_request_with_two_hosts_is_not_answered() -> None:
    with (
        page([]) as exporter,
        socket.create_connection(("127.0.0.1", exporter.port), timeout=10.0) as connection,
    ):
        connection.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
        assert b" 401 " in connection.recv(4096).split(b"\r\n")[0]


def test_a_token_opens_the_page_and_nothing_else_does() -> None:
    with page([], token="right") as exporter:
        assert get(exporter, Authorization="Bearer right", Host="anything")[0] == 200
        assert get(exporter, Authorization="bearer right")[0] == 200
        for wrong in ("", "Bearer", "Bearer wrong", "Basic right", "right", "Bearer right2"):
            assert get(exporter, Authorization=wrong)[0] == 401
        assert get(exporter)[0] == 401


def test_beyond_loopback_a_token_is_needed() -> None:
    with pytest.raises(InputError, match="needs a token"):
        Exporter(list, host="0.0.0.0")
    with pytest.raises(InputError, match="empty"):
        Exporter(list, token="")


def test_an_address_that_is_taken_is_refused() -> None:
    with page([]) as exporter, pytest.raises(InputError, match="cannot listen"):
        Exporter(list, port=exporter.port)
    for host, port in (("192.0.2.1", 0), ("127.0.0.1", 70000)):
        with pytest.raises(InputError, match="cannot listen"):
            Exporter(list, host=host, port=port, token="t")


def test_idle_clients_do_not_keep_others_out_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leptonai.operations.agent.exporter._Handler.timeout", 0.3)
    with page([]) as exporter:
        idle = [
            socket.create_connection(("127.0.0.1", exporter.port), timeout=10.0) for _ in range(MAX_REQUESTS)
        ]
        assert all(each.recv(100) == b"" for each in idle)  # let go of after the time given
        for each in idle:
            each.close()
        assert get(exporter, "/healthz")[0] == 200


@pytest.mark.parametrize(
    "data", [b"\x16\x03\x01\x02\x00", b"GET\r\n\r\n", b"A" * 70_000 + b"\r\n\r\n", b"POST / HTTP/1.1\r\n\r\n"]
)
def test_no_bytes_break_the_server(data: bytes) -> None:
    with page([]) as exporter:
        with socket.create_connection(("127.0.0.1", exporter.port), timeout=10.0) as connection:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(4096)
        assert get(exporter, "/healthz")[0] == 200
