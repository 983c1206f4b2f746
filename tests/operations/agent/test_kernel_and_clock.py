"""Kernel messages and the clock, on recorded texts."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.core.clock import FakeClock
from leptonai.operations.agent.clock_state import (
    JUMP_SECONDS,
    ClockSource,
    ClockState,
    JumpWatch,
    Timex,
    clock_state,
)
from leptonai.operations.agent.kernel_log import (
    JournalSource,
    KmsgSource,
    LogSource,
    open_kernel_log,
    parse_journal,
    parse_kmsg,
)
from leptonai.operations.agent.source import Absent, LogRecord
from tests.operations.agent.recorded import node, said

XID = (
    "4,812,98765432,-;NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, GPU has fallen off the bus.\n SUBSYSTEM=pci\n"
)
ERROR = "3,813,98800000,-;EXT4-fs error (device sda1): ext4_find_entry:1455\n"
USER = "13,814,98900000,-;systemd[1]: Started it.\n"
STATE = ClockState(
    offset_seconds=0.001, maxerror_seconds=0.5, estimated_error_seconds=0.01, frequency_ratio=1.0,
    is_synchronised=True,
)  # fmt: skip


class Kernel:
    """A device that gives one record a read, as ``/dev/kmsg`` does: a pipe in packet mode."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe2(os.O_DIRECT | os.O_NONBLOCK)
        self.path = Path(f"/proc/self/fd/{self._read}")

    def says(self, *records: str) -> None:
        for record in records:
            os.write(self._write, record.encode("utf-8", "surrogateescape"))

    def close(self) -> None:
        os.close(self._read)
        os.close(self._write)


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    made = Kernel()
    yield made
    made.close()


def source_on(kernel: Kernel, cursor: Path | None = None, *, boot_id: str = "b1") -> KmsgSource:
    return KmsgSource(kernel.path, cursor=cursor, boot_id=boot_id, clock=FakeClock(start_seconds=1000.0))


def test_messages_become_records(kernel: Kernel) -> None:
    source = source_on(kernel)
    kernel.says(XID, ERROR, USER)
    xid, error, user = source.records()
    assert xid.message == "NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, GPU has fallen off the bus."
    assert [each.severity for each in (xid, error, user)] == ["warning", "warning", "info"]
    assert xid.at_seconds == pytest.approx(98.765432)
    assert [dict(each.labels)["facility"] for each in (xid, user)] == ["kern", "user"]
    assert source.records() == []
    source.close()
    source.close()


def test_torn_and_foreign_records_are_passed_over(kernel: Kernel) -> None:
    source = source_on(kernel)
    kernel.says("no record", "4,x,5,-;text", "\udcff\udcfe;", "6,900,1,-;fine \udcff")
    assert [each.message for each in source.records()] == ["fine \ufffd"]
    source.close()


def test_a_storm_does_not_hold_up_the_samples(kernel: Kernel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("leptonai.operations.agent.kernel_log.MAX_RECORDS", 5)
    source = source_on(kernel)
    kernel.says(*(f"6,{sequence},5,-;again" for sequence in range(12)))
    assert [len(source.records()) for _ in range(4)] == [5, 5, 2, 0]
    source.close()


def test_the_next_agent_goes_on_where_the_last_one_stopped(kernel: Kernel, tmp_path: Path) -> None:
    cursor = tmp_path / "kmsg.cursor"
    first = source_on(kernel, cursor)
    kernel.says(XID, ERROR)
    assert len(first.records()) == 2
    first.close()
    second = source_on(kernel, cursor)
    kernel.says(XID, ERROR, USER)  # the device tells all of this boot again
    assert [each.message for each in second.records()] == ["systemd[1]: Started it."]
    second.close()
    third = source_on(kernel, cursor, boot_id="b2")
    kernel.says("4,1,10,-;first of this boot")
    assert [each.message for each in third.records()] == ["first of this boot"]
    third.close()


@pytest.mark.parametrize("text", ["", "nonsense", "b1 x", "b1 -4", "\xff"])
def test_a_damaged_cursor_costs_repetition_only(kernel: Kernel, tmp_path: Path, text: str) -> None:
    cursor = tmp_path / "kmsg.cursor"
    cursor.write_text(text)
    source = source_on(kernel, cursor)
    kernel.says(XID)
    assert len(source.records()) == 1
    source.close()


@given(st.text(max_size=60))
def test_no_text_breaks_the_readers(text: str) -> None:
    found = parse_kmsg(text)
    assert found is None or 0 <= found.level <= 7
    journal = parse_journal(text)
    assert journal is None or isinstance(journal.message, str)


@pytest.mark.parametrize(
    "entry",
    [
        {"MESSAGE": [1, 2], "__REALTIME_TIMESTAMP": "1"}, {"MESSAGE": "x"}, {"MESSAGE": "x", "PRIORITY": "99"},
        [1], "text", {"MESSAGE": None, "__REALTIME_TIMESTAMP": "1"},
    ],
)  # fmt: skip
def test_an_entry_of_the_journal_that_says_nothing_is_passed_over(entry: object) -> None:
    assert parse_journal(json.dumps(entry)) is None


def all_of(source: LogSource, wanted: int) -> list[LogRecord]:
    found: list[LogRecord] = []
    end = time.monotonic() + 10.0
    while len(found) < wanted:
        assert time.monotonic() < end, "it took too long"
        found += source.records()
        time.sleep(0.01)
    return found


def test_the_journal_is_followed(tmp_path: Path) -> None:
    entry = {"__REALTIME_TIMESTAMP": "5000000", "PRIORITY": "2", "MESSAGE": "Out of memory: Killed process 9"}
    line = json.dumps(entry)
    command = tmp_path / "journalctl"
    command.write_text(
        f"#!/bin/sh\necho '{line}'\nprintf '%s' '{line[:30]}'\necho '{line[30:]}'\nexec sleep 60\n"
    )
    command.chmod(0o755)
    source = JournalSource(str(command))
    first, second = all_of(source, 2)
    assert first == second
    assert (first.at_seconds, first.severity) == (5.0, "critical")
    process = source._process
    source.close()
    source.close()
    assert process.returncode is not None


def test_without_device_and_journal_it_is_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = open_kernel_log(state=None, device=tmp_path / "none", proc=tmp_path)
    assert isinstance(found, Absent)
    assert "journalctl is not installed" in found.reason


@given(
    st.lists(
        st.tuples(st.floats(0.5, 60.0), st.sampled_from([0.0, 0.01, -0.02, 3600.0, -5.0])),
        min_size=1,
        max_size=30,
    )
)
def test_jumps_are_found_and_slewing_is_none(moves: list[tuple[float, float]]) -> None:
    watch, wall, monotonic = JumpWatch(), 1e9, 50.0
    watch.step(wall, monotonic)
    for passed, jump in moves:
        wall, monotonic = wall + passed + jump, monotonic + passed
        moved = watch.step(wall, monotonic)
        assert moved == pytest.approx(jump if abs(jump) >= JUMP_SECONDS else 0.0, abs=1e-5)
    assert watch.num_jumps == sum(abs(jump) >= JUMP_SECONDS for _, jump in moves)


class TwoClocks:
    """Wall and monotonic time, moved apart by hand."""

    def __init__(self) -> None:
        self.wall, self.monotonic = 1_790_000_000.0, 10.0

    def now_seconds(self) -> float:
        return self.wall

    def monotonic_seconds(self) -> float:
        return self.monotonic

    def passes(self, seconds: float, *, jump: float = 0.0) -> None:
        self.wall, self.monotonic = self.wall + seconds + jump, self.monotonic + seconds


def test_a_clock_that_is_set_is_told_once(tmp_path: Path) -> None:
    place, clock = node(tmp_path, {}), TwoClocks()
    source = ClockSource(place, clock=clock, read_state=lambda: STATE)
    said(source, place)
    clock.passes(1.0, jump=-30.0)
    jumped = said(source, place)
    clock.passes(1.0)
    after = said(source, place)
    assert jumped["lepton_clock_step_seconds"] == pytest.approx(-30.0)
    assert after["lepton_clock_step_seconds"] == 0.0
    assert after["lepton_clock_steps_total"] == 1
    assert after["node_timex_sync_status"] == 1


def test_the_kernel_is_asked_every_few_seconds_only(tmp_path: Path) -> None:
    place, clock, asked = node(tmp_path, {}), TwoClocks(), []

    def read_state() -> ClockState:
        asked.append(clock.monotonic)
        return STATE

    source = ClockSource(place, clock=clock, read_state=read_state)
    for _ in range(10):
        assert said(source, place)["node_timex_offset_seconds"] == 0.001
        clock.passes(1.0)
    assert asked == [10.0, 15.0]


def test_units_follow_the_kernels_status() -> None:
    micro = clock_state(Timex(offset=1500, freq=65536, maxerror=20, status=0), 0)
    assert micro.offset_seconds == pytest.approx(1.5e-3)
    assert micro.frequency_ratio == pytest.approx(1.000001)
    assert micro.is_synchronised
    assert not clock_state(Timex(status=0x40), 0).is_synchronised
    assert not clock_state(Timex(), 5).is_synchronised
