"""Sending: to the real ingest server, and to servers that refuse, fail, hang up and die."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.core.clock import FakeClock
from leptonai.core.errors import InputError
from leptonai.operations.agent.collector import HEADERS, collector_at, collector_named
from leptonai.operations.agent.loop import log_body
from leptonai.operations.agent.own import Sent
from leptonai.operations.agent.remote_write import Batch, compressor
from leptonai.operations.agent.shipper import LONGEST_DELAY_SECONDS, Shipper, delay_seconds, verdict
from leptonai.operations.agent.source import LogRecord
from leptonai.operations.agent.spool import Parcel, Spool, pack, parcels
from leptonai.operations.ingest import remote_write
from leptonai.operations.ingest.access import Access
from leptonai.operations.series import Series
from tests.operations.agent.serving import Scripted, real_collector, until, values

SECRET = "s3cret-token"
LOGS = Parcel(
    "logs", 1, log_body([LogRecord(at_seconds=1.0, origin="kernel", severity="info", message="hi")], {})
)


def samples(*moments: float) -> Parcel:
    """One gauge at some times, its value the time."""
    batch = Batch([Series.of("node_load1", node="a")])
    for moment in moments:
        batch.add([(0, moment)], at_seconds=moment)
    return Parcel("samples", len(moments), compressor()(batch.take()))


def token_file(folder: Path, text: str = f"{SECRET}\n") -> Path:
    path = folder / "token"
    path.write_text(text)
    return path


class Sender:
    """A shipper on a spool in memory, whose delays are not waited for."""

    def __init__(
        self, url: str, *parcels: Parcel, token: Path | None = None, spool: Spool | None = None
    ) -> None:
        self.clock = FakeClock()
        self.spool = spool or Spool(None, clock=self.clock)
        for parcel in parcels:
            self.spool.append(parcel)
        self.sent, self.said = Sent(), list[str]()
        self.shipper = Shipper(
            self.spool, collector_at(url, token_file=token), sent=self.sent, on_trouble=self.said.append,
            clock=self.clock, chance=lambda: 1.0,
        )  # fmt: skip

    def ship(self) -> float | None:
        return self.shipper.ship()


def test_headers_are_those_that_the_collector_asks_for() -> None:
    assert HEADERS["samples"] == remote_write.HEADERS


def test_samples_arrive_in_order_over_one_connection(tmp_path: Path) -> None:
    access = Access(read_token="r", write_token=SECRET)
    with real_collector(tmp_path / "store", access=access) as (url, store):
        sender = Sender(url, samples(1e9, 1e9 + 1), samples(1e9 + 2), token=token_file(tmp_path))
        assert sender.ship() is None
        assert values(store) == {'node_load1{node="a"}': [1e9, 1e9 + 1, 1e9 + 2]}
        sender.shipper.close()
    assert (sender.sent.num_taken, sender.sent.losses(), sender.said) == (3, {}, [])


def test_what_the_collector_refuses_in_part_is_counted_in_part(tmp_path: Path) -> None:
    with real_collector(tmp_path / "store") as (url, store):
        sender = Sender(url, samples(1e9 + 5), samples(1e9 + 1, 1e9 + 9), samples(1e9 + 10))
        far = 9e12
        sender.spool.append(samples(far, 1e9 + 11))
        assert sender.ship() is None
        kept = values(store)['node_load1{node="a"}']
        sender.shipper.close()
    assert sender.sent.num_taken == len(kept)
    assert sender.sent.losses() == {"refused": 6 - len(kept)}
    assert far not in kept
    assert len(sender.said) == 1
    assert "refused" in sender.said[0]


def test_a_wrong_token_is_refused_counted_and_never_told(tmp_path: Path) -> None:
    with real_collector(tmp_path / "store", access=Access(read_token="r", write_token="other")) as (
        url,
        store,
    ):
        sender = Sender(url, samples(1e9), token=token_file(tmp_path))
        assert sender.ship() is None
        assert values(store) == {}
        sender.shipper.close()
    assert sender.sent.losses() == {"refused": 1}
    assert "401" in sender.said[0]
    assert SECRET not in sender.said[0] + repr(sender.shipper.__dict__)


def test_messages_go_to_their_own_place_as_lines(tmp_path: Path) -> None:
    with Scripted(204) as server:
        sender = Sender(f"{server.url}/under/this/", LOGS, samples(1.0), token=token_file(tmp_path))
        assert sender.ship() is None
        sender.shipper.close()
    (path, headers, body), (other, _, _) = server.requests
    assert (path, other) == ("/under/this/api/v1/logs", "/under/this/api/v1/write")
    assert headers["Content-Type"] == "application/x-ndjson"
    assert headers["Authorization"] == f"Bearer {SECRET}"
    assert body == LOGS.body
    assert server.num_connections == 1


@pytest.mark.parametrize("answer", [500, 503, 429, 302, 0])
def test_what_may_pass_later_is_kept_and_sent_later(answer: int) -> None:
    with Scripted(answer, answer, 204) as server:
        sender = Sender(server.url, samples(1.0), samples(2.0))
        assert sender.ship() == 1.0
        assert sender.ship() == 2.0
        assert sender.ship() is None
        sender.shipper.close()
    assert len(server.requests) == 4
    assert sender.sent.num_taken == 2
    assert sender.sent.num_failures == 2
    assert sender.sent.losses() == {}
    assert len(sender.said) == 1


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413])
def test_what_would_be_refused_again_is_dropped_and_the_rest_goes_on(status: int) -> None:
    with Scripted(status, 204) as server:
        sender = Sender(server.url, samples(1.0, 2.0), samples(3.0))
        assert sender.ship() is None
        sender.shipper.close()
    assert sender.sent.losses() == {"refused": 2}
    assert sender.sent.num_taken == 1


def test_a_collector_is_not_asked_before_the_time_it_named() -> None:
    with Scripted(
        (503, {"Retry-After": "30"}), (429, {"Retry-After": "99999"}), (503, {"Retry-After": "soon"})
    ) as server:
        sender = Sender(server.url, samples(1.0))
        assert [sender.ship() for _ in range(3)] == [30.0, 300.0, 4.0]
        sender.shipper.close()


def test_a_collector_that_dies_is_found_again(tmp_path: Path) -> None:
    with real_collector(tmp_path / "one") as (url, _):
        sender = Sender(url, samples(1e9))
        assert sender.ship() is None
    sender.spool.append(samples(1e9 + 1))
    delay = sender.ship()
    assert delay is not None
    assert "Connection refused" in sender.said[0]
    with Scripted(204) as server:
        sender.shipper._collector = collector_at(server.url)
        assert sender.ship() is None
    sender.shipper.close()
    assert sender.sent.num_taken == 2


def test_a_connection_closed_meanwhile_is_no_failure() -> None:
    with Scripted((204, {"Connection": "keep-alive"}), 0, 204) as server:
        sender = Sender(server.url, samples(1.0), samples(2.0))
        assert sender.ship() is None
        sender.shipper.close()
    assert len(server.requests) == 3
    assert sender.sent.num_failures == 0
    assert server.requests[1][2] == server.requests[2][2]


def test_an_answer_without_end_is_cut_off() -> None:
    with Scripted((204, {}), 204) as server:
        original = server.handler.do_POST

        def endless(self: object) -> None:
            server.handler.do_POST = original  # type: ignore[method-assign]
            self.rfile.read(int(self.headers["Content-Length"]))  # type: ignore[attr-defined]
            self.send_response(200)  # type: ignore[attr-defined]
            self.send_header("Content-Length", str(1 << 30))  # type: ignore[attr-defined]
            self.end_headers()  # type: ignore[attr-defined]
            self.wfile.write(b"x" * 100_000)  # type: ignore[attr-defined]

        server.handler.do_POST = endless  # type: ignore[assignment, method-assign]
        sender = Sender(server.url, samples(1.0), samples(2.0))
        assert sender.ship() is None
        sender.shipper.close()
    assert sender.sent.num_taken == 2


def test_a_server_that_speaks_no_http_is_asked_again() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(10.0)
        sender = Sender(f"http://127.0.0.1:{listener.getsockname()[1]}", samples(1.0))

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(65536)
                connection.sendall(b"\x15\x03\x01 not http\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert sender.ship() == 1.0
        thread.join(10.0)
    sender.shipper.close()
    assert "BadStatusLine" in sender.said[0]


def test_a_token_that_went_away_waits_for_it(tmp_path: Path) -> None:
    path = token_file(tmp_path)
    with Scripted(204) as server:
        sender = Sender(server.url, samples(1.0), token=path)
        path.write_text("")
        assert sender.ship() == 1.0
        assert server.requests == []
        path.write_text("another\n")
        assert sender.ship() is None
        sender.shipper.close()
    assert server.requests[0][1]["Authorization"] == "Bearer another"


def test_the_thread_sends_when_woken_and_flushes_at_the_end(tmp_path: Path) -> None:
    with real_collector(tmp_path / "store") as (url, store):
        spool, sent = Spool(tmp_path / "spool"), Sent()
        shipper = Shipper(spool, collector_at(url), sent=sent)
        shipper.start()
        spool.append(samples(1e9))
        shipper.wake()
        until(lambda: sent.num_taken == 1)
        spool.append(samples(1e9 + 1))  # nobody wakes it
        shipper.close()
        shipper.close()
        assert values(store) == {'node_load1{node="a"}': [1e9, 1e9 + 1]}
        spool.close()


def test_closing_does_not_wait_for_a_backlog_beyond_its_time() -> None:
    with Scripted(204) as server:
        sender = Sender(server.url, *(samples(float(second)) for second in range(50)))
        sender.shipper.close(flush_seconds=0.0)
        assert sender.ship() is None  # nothing more is tried
    assert server.requests == []


def test_nothing_is_lost_while_the_collector_is_away(tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool", clock=FakeClock())
    with Scripted(503) as server:
        sender = Sender(server.url, spool=spool)
        for second in range(100):
            spool.append(samples(1e9 + second))
            sender.ship()
        sender.shipper.close()
    spool.close()
    again = Spool(tmp_path / "spool", clock=FakeClock())
    with real_collector(tmp_path / "store") as (url, store):
        sender = Sender(url, spool=again)
        assert sender.ship() is None
        sender.shipper.close()
        assert values(store) == {'node_load1{node="a"}': [1e9 + second for second in range(100)]}
    again.close()


@given(st.integers(1, 10_000), st.floats(0.0, 1.0), st.none() | st.floats(0.0, 1e6))
def test_delays_are_bounded_and_never_shorter_than_asked(
    failures: int, chance: float, asked: float | None
) -> None:
    delay = delay_seconds(failures, chance, asked=asked)
    assert 0.5 <= delay <= 300.0
    assert asked is None or delay >= min(asked, 300.0)
    if asked is None:
        assert delay <= LONGEST_DELAY_SECONDS
        assert delay_seconds(failures + 1, chance) >= delay


@given(st.integers(100, 999))
def test_only_4xx_is_given_up(status: int) -> None:
    expected = (
        "taken" if 200 <= status < 300 else "refused" if 400 <= status < 500 and status != 429 else "later"
    )
    assert verdict(status) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "collector:9095",
        "ftp://collector",
        "http://",
        "http://h:99999",
        "http://[::1",
        "http://h/?q=1",
        "file:///x",
    ],
)
def test_an_address_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(InputError):
        collector_at(url)


def test_a_password_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(InputError) as refused:
        collector_at(f"https://me:{SECRET}@collector")
    assert SECRET not in str(refused.value)


def test_a_token_passes_encrypted_or_on_loopback_only(tmp_path: Path) -> None:
    token = token_file(tmp_path)
    for url in ("http://127.0.0.1:1", "http://[::1]:1", "http://localhost:1", "https://collector"):
        collector_at(url, token_file=token)
    for url in ("http://10.0.0.7:9095", "http://collector", "http://localhost.evil.example"):
        with pytest.raises(InputError, match="unencrypted"):
            collector_at(url, token_file=token)
        collector_at(url, token_file=token, insecure_http=True)
        collector_at(url)


@pytest.mark.parametrize("text", ["", "\n", "two words\n", "t\u00f6ken", "x" * 5000, "a\r\nHost: evil"])
def test_a_file_that_holds_no_token_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError):
        collector_at("http://127.0.0.1:1", token_file=token_file(tmp_path, text))


def test_the_environment_names_a_collector() -> None:
    assert collector_named({}) is None
    assert collector_named({"LEPTON_COLLECTOR": ""}) is None
    named = {"LEPTON_COLLECTOR": "http://c", "LEPTON_COLLECTOR_TOKEN_FILE": "/t"}
    assert collector_named(named) == ("http://c", Path("/t"))


def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 that signs itself, made by openssl."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    words = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days",
             "1", "-subj", "/CN=collector", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key),
             "-out", str(certificate)]  # fmt: skip
    try:
        subprocess.run(words, check=True, capture_output=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("openssl is not installed")
    return certificate, key


def test_over_tls_only_a_trusted_collector_gets_anything(tmp_path: Path) -> None:
    trusted, key = certificate(tmp_path)
    with Scripted(204) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(trusted, key)
        server._server.socket = context.wrap_socket(server._server.socket, server_side=True)
        url, token = server.url.replace("http:", "https:"), token_file(tmp_path)
        for ca_file, expected in ((None, 1.0), (trusted, None)):
            sender = Sender("http://127.0.0.1:1", samples(1.0))
            sender.shipper._collector = collector_at(url, token_file=token, ca_file=ca_file)
            assert sender.ship() == expected
            sender.shipper.close()
    assert len(server.requests) == 1
    with pytest.raises(InputError, match="CA file"):
        collector_at("https://collector", ca_file=tmp_path / "none.pem")
    (tmp_path / "bad.pem").write_text("no certificate")
    with pytest.raises(InputError, match="CA file"):
        collector_at("https://collector", ca_file=tmp_path / "bad.pem")
    with pytest.raises(InputError, match="https"):
        collector_at("http://127.0.0.1:1", ca_file=trusted)


def test_a_damaged_spool_loses_only_what_is_damaged(tmp_path: Path) -> None:
    spool = Spool(tmp_path, clock=FakeClock())
    for second in range(5):
        spool.append(samples(float(second)))
    spool.close()
    (segment,) = sorted(tmp_path.glob("*.spool"))
    data = bytearray(segment.read_bytes())
    data[-3] ^= 0xFF
    segment.write_bytes(data)
    (tmp_path / "sent").write_text("not numbers")
    (tmp_path / "0000000009.spool").write_bytes(b"\x00" * 100)
    (tmp_path / "notes.spool").write_text("of somebody else")
    again = Spool(tmp_path, clock=FakeClock())
    again.append(samples(9.0))
    with Scripted(204) as server:
        sender = Sender(server.url, spool=again)
        assert sender.ship() is None
        sender.shipper.close()
    assert sender.sent.num_taken == 5
    assert again.dropped["damaged"] == 2
    assert (tmp_path / "notes.spool").exists()
    again.close()


@given(st.binary(max_size=300), st.integers(0, 400))
def test_no_bytes_in_a_spool_break_its_reader(junk: bytes, at: int) -> None:
    good = pack(LOGS)
    data = good + junk
    found = list(parcels(data))
    assert found[0] == LOGS
    cut = min(at, len(good) - 1)
    assert list(parcels(good[:cut])) == []
