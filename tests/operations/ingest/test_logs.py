"""Lines of logs that are pushed: read with bounds, given on or counted; bad lines do not hold up good ones."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.core.clock import SystemClock
from leptonai.core.errors import Fault
from leptonai.operations.agent.loop import log_body
from leptonai.operations.agent.source import LogRecord
from leptonai.operations.ingest.access import Access
from leptonai.operations.ingest.intake import Intake
from leptonai.operations.ingest.limits import IngestLimits
from leptonai.operations.ingest.logs import MAX_LINE_BYTES, LogLine, read_lines
from leptonai.operations.ingest.server import IngestServer, make_app
from leptonai.operations.store import MetricsStore

ACCESS = Access(read_token="reader", write_token="writer")
WRITER = {"Authorization": "Bearer writer", "Content-Type": "application/x-ndjson"}
RECORD = LogRecord(
    at_seconds=5.5, origin="kernel", severity="critical", message='I/O "error"\n', labels=(("gpu", "0"),)
)
GOOD = {"at_seconds": 1, "origin": "kernel", "severity": "err", "message": "m", "labels": {}}


@pytest.fixture
def intake(tmp_path: Path) -> Iterator[Intake]:
    with MetricsStore.open(tmp_path / "store", clock=SystemClock()) as store:
        yield Intake(store, limits=IngestLimits(body_bytes=10_000, log_lines=3), clock=SystemClock())


def post(intake: Intake, content: bytes, take_logs: Any, headers: dict[str, str] = WRITER) -> httpx.Response:
    app = make_app(intake, access=ACCESS, take_logs=take_logs)
    with IngestServer(app, access=ACCESS) as server:
        return httpx.post(f"{server.url}/api/v1/logs", content=content, headers=headers, trust_env=False)


def test_what_an_agent_sends_is_given_on(intake: Intake) -> None:
    taken: list[LogLine] = []
    reply = post(intake, log_body([RECORD, RECORD], {"node": "a"}), taken.extend)
    assert reply.status_code == 204
    line = LogLine(
        at_seconds=5.5,
        origin="kernel",
        severity="critical",
        message='I/O "error"\n',
        labels={"node": "a", "gpu": "0"},
    )
    assert taken == [line, line]
    assert intake.totals["logs", "accepted"] == 2


def test_where_nobody_takes_them_they_are_counted(intake: Intake) -> None:
    assert post(intake, log_body([RECORD], {}), None).status_code == 204
    assert intake.totals["logs", "nobody_takes_logs"] == 1


def test_a_bad_line_is_told_and_the_others_are_taken(intake: Intake) -> None:
    taken: list[LogLine] = []
    good = json.dumps(GOOD).encode()
    reply = post(intake, b"\n".join([good, b"{", b"", good, good, good]), taken.extend)
    assert (reply.status_code, reply.text) == (
        400, "2 lines were refused; the first: line 2: not a JSON object\n")  # fmt: skip
    assert len(taken) == 3
    assert intake.totals["logs", "broken_line"] == 2


def test_rights_and_sizes_are_checked_first(intake: Intake) -> None:
    taken: list[LogLine] = []
    reader = {"Authorization": "Bearer reader"}
    assert post(intake, b"{}", taken.extend, reader).status_code == 401
    assert post(intake, bytes(10_001), taken.extend).status_code == 413
    assert not taken


def test_a_taker_that_fails_asks_to_try_again(intake: Intake) -> None:
    def take(_: object) -> None:
        raise Fault("the disk is full")

    reply = post(intake, json.dumps(GOOD).encode(), take)
    assert (reply.status_code, reply.text) == (503, "the disk is full\n")


@pytest.mark.parametrize(
    "words",
    [{"at_seconds": None}, {"at_seconds": "1"}, {"at_seconds": True}, {"at_seconds": float("nan")},
     {"at_seconds": 10**400}, {"message": None}, {"message": 3}, {"origin": 3}, {"labels": []}, {"labels": {"a": 1}},
     {"labels": {str(n): "" for n in range(65)}}, {"message": "x" * MAX_LINE_BYTES}],
)  # fmt: skip
def test_a_line_that_is_none_is_refused(words: dict[str, Any]) -> None:
    lines, problems = read_lines(json.dumps({**GOOD, **words}).encode(), max_lines=5)
    assert (lines, len(problems)) == ([], 1)


def test_halves_of_characters_do_not_come_through() -> None:
    (line,), _ = read_lines(rb'{"at_seconds": 1, "message": "a\ud800b"}', max_lines=5)
    assert line.message == "a?b"


@given(
    st.binary(max_size=80),
    st.lists(st.sampled_from([json.dumps(GOOD), "{", "[", "1e999", '"\\ud800"', "null"])),
)
def test_any_bytes_are_read_or_told(junk: bytes, pieces: list[str]) -> None:
    for body in (junk, "\n".join(pieces).encode()):
        lines, problems = read_lines(body, max_lines=5)
        assert len(lines) + len(problems) == sum(bool(line.strip()) for line in body.split(b"\n"))
