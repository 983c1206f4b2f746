"""Who is called and when, and calls to real receivers on this machine."""

from __future__ import annotations

import hashlib
import hmac
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from leptonai.core.clock import FakeClock
from leptonai.core.errors import Fault, InputError
from leptonai.core.workspace import Workspace
from leptonai.operations.incidents.channels import Channel, OpsSettings, read_ops_file
from leptonai.operations.incidents.incident import Change, Incident
from leptonai.operations.incidents.incident_store import IncidentStore
from leptonai.operations.incidents.notify import Outbox, calls_for, words_of
from leptonai.operations.incidents.send import SIGNATURE_HEADER, send
from leptonai.operations.incidents.silences import DAYS, QuietHours, Silence, quiet_until
from tests.operations.incidents.test_incident import Book, alarm

BERLIN = ZoneInfo("Europe/Berlin")
NIGHT = QuietHours(days=DAYS, from_minute=22 * 60, to_minute=6 * 60, timezone="Europe/Berlin")
TEAM = Channel(name="team", kind="webhook", url="http://127.0.0.1:9/")


def at(*when: int) -> float:
    return datetime(*when, tzinfo=BERLIN).timestamp()  # type: ignore[arg-type]


def test_quiet_hours_follow_the_clock_on_the_wall() -> None:
    assert NIGHT.end_of(at(2026, 1, 5, 23)) == at(2026, 1, 6, 6)
    assert NIGHT.end_of(at(2026, 1, 6, 5, 59)) == at(2026, 1, 6, 6)
    assert NIGHT.end_of(at(2026, 1, 6, 6)) is None
    assert NIGHT.end_of(at(2026, 1, 6, 21, 59)) is None
    # In the night of 29 March 2026 the hour from two to three does not exist: seven hours later it is six.
    assert NIGHT.end_of(at(2026, 3, 28, 22)) == at(2026, 3, 28, 22) + 7 * 3600


def test_quiet_hours_that_follow_each_other_are_one() -> None:
    saturday = QuietHours(days=("sat",), from_minute=360, to_minute=1320, timezone="Europe/Berlin")
    friday_night = at(2026, 1, 9, 23)
    assert quiet_until([NIGHT, saturday], "warning", friday_night) == at(2026, 1, 11, 6)
    assert quiet_until([NIGHT, saturday], "fatal", friday_night) is None
    always = QuietHours(days=DAYS, from_minute=0, to_minute=0)
    assert quiet_until([always], "warning", 0.0) is not None  # and it ends


@pytest.mark.parametrize("wrong", [{"from_minute": 1440}, {"to_minute": -1}, {"timezone": "Europe/Nowhere"}])
def test_wrong_quiet_hours_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(InputError, match="quiet hours"):
        replace(NIGHT, **wrong)  # type: ignore[arg-type]


def test_who_is_called() -> None:
    placed = Book().take(alarm(severity="warning"))
    grave = replace(TEAM, name="pager", least="critical")
    deaf = replace(TEAM, name="log", quiet=False)
    settings = OpsSettings(channels=(TEAM, grave, deaf), quiet_hours=(NIGHT,))
    noon, night = at(2026, 1, 5, 12), at(2026, 1, 5, 23)
    assert {each.channel for each in calls_for(placed, settings, [], now_seconds=noon)} == {"team", "log"}
    due = {each.channel: each.due_seconds for each in calls_for(placed, settings, [], now_seconds=night)}
    assert due == {"team": at(2026, 1, 6, 6), "log": night}
    hush = Silence(until_seconds=noon + 1, author="ada", reason="being replaced", place="a")
    assert calls_for(placed, settings, [hush], now_seconds=noon) == []
    assert len(calls_for(placed, settings, [hush], now_seconds=noon + 1)) == 2
    assert len(calls_for(placed, settings, [replace(hush, cause="ecc")], now_seconds=noon)) == 2


def test_a_silence_for_one_cause_does_not_hide_another_in_the_same_incident() -> None:
    book = Book()
    first = book.take(alarm("ecc")).incident
    both = book.take(alarm("xid_79", at=101.0)).incident
    assert first is not None
    assert both is not None
    hush = Silence(until_seconds=1e9, author="ada", reason="known", cause="ecc")
    assert hush.covers(first, now_seconds=100.0)
    assert not hush.covers(both, now_seconds=101.0)


@pytest.mark.parametrize("values", [{}, {"place": "a", "reason": " "}])
def test_silencing_everything_or_without_a_reason_is_refused(values: dict[str, str]) -> None:
    with pytest.raises(InputError, match="a silence needs"):
        Silence(**{"until_seconds": 1.0, "author": "ada", "reason": "x", **values})  # type: ignore[arg-type]


class Sent:
    """Remembers, and fails when told to."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, Change, bool]] = []
        self.broken = False

    def __call__(self, channel: Channel, incident: Incident, change: Change) -> None:
        if self.broken:
            raise Fault("no way through")
        self.told.append((channel.name, incident.number, change, incident.is_open))


def test_calls_are_made_once_and_again_after_a_failure(workspace: Workspace) -> None:
    clock, sent = FakeClock(start_seconds=100.0), Sent()
    store, outbox = IncidentStore(workspace, clock=clock), Outbox(workspace, clock=clock, send=sent)
    settings = OpsSettings(channels=(TEAM,))
    placed = store.take(alarm())
    assert outbox.take(placed, settings) == 1
    assert outbox.take(placed, settings) == 0
    sent.broken = True
    assert outbox.deliver(settings, store) == 0
    assert (outbox.calls()[0].tries, outbox.calls()[0].problem) == (1, "no way through")
    sent.broken = False
    assert outbox.deliver(settings, store) == 0  # not due again yet
    clock.advance(10.0)
    assert Outbox(workspace, clock=clock, send=sent).deliver(settings, store) == 1  # after a restart too
    assert outbox.deliver(settings, store) == 0
    assert sent.told == [("team", 1, "opened", True)]
    outbox.take(store.take(alarm(at=120.0, over=True)), settings)
    outbox.deliver(settings, store)
    assert sent.told[1:] == [("team", 1, "closed", False)]


def test_what_began_and_ended_in_quiet_hours_is_one_call(workspace: Workspace) -> None:
    night = at(2026, 1, 5, 23)
    clock, sent = FakeClock(start_seconds=night), Sent()
    store, outbox = IncidentStore(workspace, clock=clock), Outbox(workspace, clock=clock, send=sent)
    settings = OpsSettings(channels=(TEAM,), quiet_hours=(NIGHT,))
    outbox.take(store.take(alarm(at=night)), settings)
    outbox.take(store.take(alarm(at=night + 60, over=True)), settings)
    assert outbox.deliver(settings, store) == 0
    clock.advance(7 * 3600)
    assert outbox.deliver(settings, store) == 1
    assert sent.told == [("team", 1, "opened", False)]


def test_calls_nobody_takes_are_given_up_after_a_day(workspace: Workspace) -> None:
    clock, sent = FakeClock(), Sent()
    sent.broken = True
    store, outbox = IncidentStore(workspace, clock=clock), Outbox(workspace, clock=clock, send=sent)
    settings = OpsSettings(channels=(TEAM,))
    outbox.take(store.take(alarm()), settings)
    for _ in range(60):
        outbox.deliver(settings, store)
        clock.advance(3600.0)
    (call,) = outbox.calls()
    assert call.state == "given up"
    assert 24 <= call.tries < 60


def test_silences_are_kept_until_they_end(workspace: Workspace) -> None:
    clock = FakeClock()
    outbox = Outbox(workspace, clock=clock, send=Sent())
    number = outbox.silence(Silence(until_seconds=10.0, author="ada", reason="known", place="a"))
    assert [each.number for each in outbox.silences()] == [number]
    clock.advance(10.0)
    assert outbox.silences() == []


@contextmanager
def receiver(status: int = 200) -> Iterator[tuple[str, list[tuple[dict[str, str], bytes]]]]:
    """A web server on this machine that keeps what is posted to it."""
    got: list[tuple[dict[str, str], bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            got.append((dict(self.headers), body))
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/hook", got
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def opened() -> Incident:
    found = Book().take(alarm(run="run-1")).incident
    assert found is not None
    return found


def secret(folder: Path, text: str) -> Path:
    path = folder / "secret"
    path.write_text(text)
    path.chmod(0o600)
    return path


def test_webhooks_are_signed_and_slack_gets_text(tmp_path: Path) -> None:
    with receiver() as (url, got):
        send(replace(TEAM, url=url, secret_file=secret(tmp_path, "key\n")), opened(), "opened")
        send(replace(TEAM, kind="slack", url=url), opened(), "opened")
    (headers, body), (_, slack) = got
    assert headers[SIGNATURE_HEADER] == "sha256=" + hmac.new(b"key", body, hashlib.sha256).hexdigest()
    assert json.loads(body)["incident"]["cause"] == "xid_79"
    assert json.loads(slack)["text"].startswith(
        "[critical] new: xid_79 of device a/gpu3\nincident 1 at a, since 1970"
    )


@pytest.mark.parametrize("status", [302, 500])
def test_an_answer_that_is_not_yes_is_a_fault_without_the_address(status: int) -> None:
    with receiver(status) as (url, got), pytest.raises(Fault, match=str(status)) as caught:
        send(replace(TEAM, url=url), opened(), "opened")
    assert len(got) == 1
    assert "hook" not in str(caught.value)


def test_a_channel_that_is_not_there_is_a_fault() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(Fault, match="could not be reached"):
        send(replace(TEAM, url=f"http://127.0.0.1:{port}/"), opened(), "opened")


@contextmanager
def mail_server() -> Iterator[tuple[int, list[bytes]]]:
    """Speaks just enough SMTP to take one mail."""
    got: list[bytes] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        connection, _ = listener.accept()
        with connection, connection.makefile("rwb") as file:

            def say(words: bytes) -> None:
                file.write(words + b"\r\n")
                file.flush()

            say(b"220 here")
            for line in file:
                word = line[:4].upper()
                if word == b"DATA":
                    say(b"354 go on")
                    got.append(b"".join(iter(file.readline, b".\r\n")))
                say(b"221 bye" if word == b"QUIT" else b"250 ok")
                if word == b"QUIT":
                    return

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1], got
    finally:
        thread.join(10.0)
        listener.close()


def test_mail_is_sent() -> None:
    with mail_server() as (port, got):
        mail = Channel(name="mail", kind="email", to=("a@b",), sender="c@d", host="127.0.0.1", port=port)
        send(mail, opened(), "opened")
    assert b"Subject: [critical] new: xid_79 of device a/gpu3" in got[0]
    assert b"runs: run-1" in got[0]


def test_words_say_when_it_is_over() -> None:
    book = Book()
    book.take(alarm())
    over = book.take(alarm(at=200.0, over=True)).incident
    assert over is not None
    assert words_of(over, "closed")[0].startswith("[critical] over: ")


GOOD = """
channels:
  - {name: team, kind: slack, url_file: hook, least: critical}
  - {name: audit, kind: webhook, url: "https://example.org/x", secret_file: key}
  - {name: mail, kind: email, to: [a@b], sender: c@d, host: mail.example.org}
quiet_hours:
  - {days: [sat, sun], begins: "00:00", ends: "00:00", timezone: Europe/Berlin}
"""


def test_the_file(tmp_path: Path) -> None:
    path = tmp_path / "ops.yaml"
    path.write_text(GOOD)
    found = read_ops_file(path)
    assert [each.name for each in found.channels] == ["team", "audit", "mail"]
    assert found.quiet_hours[0].days == ("sat", "sun")
    (tmp_path / "hook").write_text("https://example.org/secret\n")
    (tmp_path / "hook").chmod(0o600)
    assert found.channels[0].address() == "https://example.org/secret"
    (tmp_path / "hook").chmod(0o644)
    with pytest.raises(InputError, match="others may read"):
        found.channels[0].address()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("channels: [{name: a, kind: slack}]", "either url or url_file"),
        (
            "channels: [{name: a, kind: webhook, url: 'http://example.org/'}]",
            "neither https nor on this machine",
        ),
        ("channels: [{name: a, kind: email, to: [x]}]", "needs 'sender'"),
        ("channels: [{name: a, kind: pigeon, url: x}]", "kind"),
        (GOOD + "  - {begins: '25:00', ends: '01:00'}", "expected a time of day"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_with_its_line(words: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "ops.yaml"
    path.write_text(words)
    with pytest.raises(InputError, match=said) as caught:
        read_ops_file(path)
    assert "ops.yaml:" in str(caught.value)
