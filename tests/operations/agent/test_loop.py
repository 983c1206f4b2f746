"""The sampler: what it reads when, what it packs, and what befalls it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.core.clock import FakeClock
from leptonai.operations.agent.loop import METADATA_SECONDS, Sampler, Schedule, run_loop
from leptonai.operations.agent.opened import REOPEN_SECONDS, RETRY_SECONDS, Sources
from leptonai.operations.agent.own import Sent
from leptonai.operations.agent.source import Absent, LogRecord, Opener, Place, Reading, SeriesTable
from leptonai.operations.agent.spool import Spool
from leptonai.operations.ingest.intake import Intake
from leptonai.operations.ingest.limits import IngestLimits
from leptonai.operations.ingest.remote_write import receive
from leptonai.operations.ingest.snappy import unpack
from leptonai.operations.store import MetricsStore

RECORD = LogRecord(
    at_seconds=5.0, origin="kernel", severity="warning", message="a\nb", labels=(("facility", "kern"),)
)


class Scripted:
    """A source that counts how often it was read, and fails when it is told to."""

    def __init__(self, table: SeriesTable, metric: str = "node_load1", *, every: float = 0.0) -> None:
        self.name, self.interval_seconds = metric, every
        self.fails: Exception | None = None
        self.read_at: list[float] = []
        self.closed = 0
        self.told: list[LogRecord] = []
        self.clock: FakeClock | None = None
        self._key = table.key(metric)

    def read(self, out: list[Reading]) -> None:
        self.read_at.append(-1.0 if self.clock is None else self.clock.monotonic_seconds())
        if self.fails is not None:
            raise self.fails
        out.append((self._key, float(len(self.read_at))))

    def records(self) -> list[LogRecord]:
        found, self.told = self.told, []
        return found

    def close(self) -> None:
        self.closed += 1


class Bench:
    """A sampler with scripted sources, a clock moved by hand and a spool in memory."""

    def __init__(self, openers: Mapping[str, Opener] | None = None, *, spool: Spool | None = None) -> None:
        self.clock, self.table = FakeClock(start_seconds=1000.0), SeriesTable({"node": "a"})
        self.spool = spool or Spool(None, clock=self.clock)
        self.sources = Sources(Place(table=self.table), openers=openers or {}, kernel_log=None)
        self.sent = Sent()
        self.sampler = Sampler(self.sources, self.table, self.spool, clock=self.clock, sent=self.sent)

    def add(self, metric: str = "node_load1", *, every: float = 0.0) -> Scripted:
        made = Scripted(self.table, metric, every=every)
        made.clock = self.clock
        self.sources.add(made)
        return made

    def ticks(self, number: int, *, seconds: float = 1.0) -> None:
        for _ in range(number):
            self.sampler.tick()
            self.clock.advance(seconds)

    def latest(self) -> dict[str, float]:
        return {repr(self.table.series[key]): value for key, value in self.sampler.latest()}


def sent_samples(spool: Spool, folder: Path) -> tuple[dict[str, list[tuple[float, float]]], MetricsStore]:
    """What a collector has after it took all parcels: times in seconds and values by series; and its store."""
    clock = FakeClock(start_seconds=1000.0)
    store = MetricsStore.open(folder, clock=clock)
    intake = Intake(store, limits=IngestLimits(), clock=clock)
    while (parcel := spool.first()) is not None:
        spool.sent(parcel)
        if parcel.kind == "samples":
            assert receive(intake, "here", parcel.body).num_accepted == parcel.num_items
    found = {
        repr(each.series): list(zip((each.times_ms / 1000).tolist(), each.values.tolist(), strict=True))
        for each in store.select([], 0, 1 << 60)
    }
    return found, store


def logs(spool: Spool) -> list[dict[str, object]]:
    found = []
    while (parcel := spool.first()) is not None:
        spool.sent(parcel)
        if parcel.kind == "logs":
            lines = parcel.body.decode().splitlines()
            assert len(lines) == parcel.num_items
            found += [json.loads(line) for line in lines]
    return found


@given(st.floats(0.1, 10.0), st.lists(st.floats(0.0, 30.0), min_size=1, max_size=50))
def test_ticks_stay_on_their_grid_and_never_come_in_a_storm(interval: float, work: list[float]) -> None:
    now = start = 100.0
    schedule, num_missed = Schedule(interval, start), 0
    for num_ticks, seconds in enumerate(work, 1):
        wait = schedule.wait_seconds(now)
        assert 0 <= wait <= interval * (1 + 1e-9)
        now += wait
        now += seconds
        num_missed += schedule.ticked(now)
        assert schedule.next_seconds == pytest.approx(start + (num_ticks + num_missed) * interval)
    assert schedule.next_seconds > now - 1e-6


def test_each_source_is_read_as_often_as_it_asks() -> None:
    bench = Bench()
    fast, slow = bench.add(), bench.add("node_load5", every=5.0)
    bench.ticks(12)
    assert len(fast.read_at) == 12
    assert slow.read_at == [1000.0, 1005.0, 1010.0]


def test_a_slow_source_is_not_read_twice_for_lost_time() -> None:
    bench = Bench()
    slow = bench.add(every=5.0)
    bench.ticks(1)
    bench.clock.advance(60.0)
    bench.ticks(7)
    assert slow.read_at == [1000.0, 1061.0, 1066.0]


@pytest.mark.parametrize(
    "error", [OSError(5, "Input/output error"), ValueError("torn"), RuntimeError("library")]
)
def test_a_source_that_fails_costs_only_itself_and_is_tried_again(error: Exception) -> None:
    bench = Bench()
    good, bad = bench.add(), bench.add("node_load5")
    bad.fails = error
    bench.ticks(3)
    assert len(good.read_at) == 3
    assert len(bad.read_at) == 1
    assert bench.latest()['lepton_agent_source_up{node="a",source="node_load5"}'] == 0
    assert [each.name for each in bench.sources.absent()][:1] == ["node_load5"]
    assert bench.sources.watched["node_load5"].num_failures == 1
    bad.fails = None
    bench.clock.advance(RETRY_SECONDS)
    bench.ticks(2)
    assert bench.latest()['lepton_agent_source_up{node="a",source="node_load5"}'] == 1
    assert bench.latest()['node_load5{node="a"}'] == 3


def test_a_failed_source_no_longer_shows_its_old_values() -> None:
    bench = Bench()
    bad = bench.add()
    bench.ticks(1)
    assert 'node_load1{node="a"}' in bench.latest()
    bad.fails = OSError(5, "Input/output error")
    bench.ticks(1)
    assert 'node_load1{node="a"}' not in bench.latest()


def test_an_absent_source_is_looked_for_again() -> None:
    answers: list[Callable[[Place], object]] = [lambda place: Absent("gpu", "no driver")]
    bench = Bench({"gpu": lambda place: answers[0](place)})  # type: ignore[dict-item, return-value]
    bench.ticks(2)
    assert [each.reason for each in bench.sources.absent()] == ["no driver", "not asked for"]
    answers[0] = lambda place: Scripted(place.table)
    bench.ticks(1)
    assert 'node_load1{node="a"}' not in bench.latest()
    bench.clock.advance(REOPEN_SECONDS)
    bench.ticks(1)
    assert 'node_load1{node="a"}' in bench.latest()
    assert bench.sources.present() == ["gpu"]


def test_an_opener_that_breaks_is_absent() -> None:
    def opener(place: Place) -> Absent:
        raise RuntimeError("a library's own fault")

    bench = Bench({"gpu": opener})
    assert bench.sources.absent()[0].reason == "RuntimeError: a library's own fault"
    bench.ticks(1)


def test_what_is_taken_is_packed_every_few_seconds_and_arrives(tmp_path: Path) -> None:
    bench = Bench()
    bench.add()
    bench.ticks(5)
    assert bench.spool.first() is None
    bench.ticks(6)
    bench.sampler.tick(goodbye=True)
    found, store = sent_samples(bench.spool, tmp_path)
    assert found['node_load1{node="a"}'] == [(1000.0 + second, second + 1.0) for second in range(12)]
    assert [value for _, value in found['lepton_agent_up{node="a"}']] == [1.0] * 11 + [0.0]
    assert found['lepton_agent_expected_gap_seconds{node="a"}'][0][1] == 6.0
    assert found['lepton_agent_samples_total{node="a"}'][-1][1] == 12.0
    assert store.metadata()["node_load1"].help == "Load average over a minute."
    store.close()


def test_kinds_and_helps_are_told_again_now_and_then() -> None:
    bench = Bench()
    bench.add()
    tells_helps = []
    for _ in range(int(METADATA_SECONDS) + 20):
        bench.ticks(1)
        while (parcel := bench.spool.first()) is not None:
            tells_helps.append(b"Load average over a minute." in unpack(parcel.body, limit_bytes=1 << 20))
            bench.spool.sent(parcel)
    assert [at for at, tells in enumerate(tells_helps) if tells] == [0, int(METADATA_SECONDS) // 5]


def test_what_the_agent_costs_and_loses_is_told() -> None:
    bench = Bench()
    bench.sent.took(7)
    bench.sent.lost("refused", 2)
    bench.sent.failed()
    bench.sampler.tick(num_late=3)
    found = bench.latest()
    assert found['lepton_agent_sent_items_total{node="a"}'] == 7
    assert found['lepton_agent_dropped_items_total{node="a",reason="refused"}'] == 2
    assert found['lepton_agent_dropped_items_total{node="a",reason="damaged"}'] == 0
    assert found['lepton_agent_send_failures_total{node="a"}'] == 1
    assert found['lepton_agent_late_ticks_total{node="a"}'] == 3
    assert found['process_resident_memory_bytes{node="a"}'] > 1e6
    assert found['process_cpu_seconds_total{node="a"}'] > 0


def test_messages_become_lines_of_json_with_the_nodes_labels() -> None:
    bench = Bench()
    teller = bench.add()
    teller.told = [RECORD, RECORD]
    bench.ticks(6)
    line = {"at_seconds": 5.0, "origin": "kernel", "severity": "warning", "message": "a\nb",
            "labels": {"node": "a", "facility": "kern"}}  # fmt: skip
    assert logs(bench.spool) == [line, line]
    assert bench.latest()['lepton_agent_log_records_total{node="a"}'] == 2


def test_a_kernel_log_that_breaks_is_left_alone_for_a_while() -> None:
    class Broken:
        name, num_asked = "kernel messages", 0

        def records(self) -> list[LogRecord]:
            self.num_asked += 1
            raise OSError(5, "Input/output error")

        def close(self) -> None:
            pass

    broken = Broken()
    sources = Sources(Place(table=SeriesTable()), openers={}, kernel_log=lambda **_: broken)
    for second in range(25):
        assert sources.records(float(second)) == []
    assert broken.num_asked == 3
    assert sources.num_log_failures == 3


def test_a_full_spool_does_not_stop_the_sampler(tmp_path: Path) -> None:
    clock = FakeClock(start_seconds=1000.0)
    spool = Spool(tmp_path, max_bytes=8192, clock=clock)
    bench = Bench(spool=spool)
    for number in range(20):
        bench.add(f"node_memory_{['MemTotal', 'MemFree', 'Buffers', 'Cached'][number % 4]}_bytes")
    bench.ticks(400)
    assert spool.size_bytes <= 8192
    assert bench.latest()['lepton_agent_dropped_items_total{node="a",reason="full"}'] > 0
    spool.close()


def test_the_loop_ends_with_a_goodbye_and_counts_late_ticks(tmp_path: Path) -> None:
    bench = Bench()
    bench.add()
    waits: list[float] = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        bench.clock.advance(seconds)
        if len(waits) == 3:
            bench.clock.advance(2.5)  # the machine stood still
        return len(waits) == 7

    run_loop(bench.sampler, wait=wait, clock=bench.clock, interval_seconds=1.0)
    found, store = sent_samples(bench.spool, tmp_path)
    times = [at for at, _ in found['node_load1{node="a"}']]
    assert times == [1000.0, 1001.0, 1004.5, 1005.0, 1006.0, 1007.0, 1008.0]
    assert found['lepton_agent_late_ticks_total{node="a"}'][-1][1] == 2
    assert found['lepton_agent_up{node="a"}'][-1] == (1008.0, 0.0)
    store.close()


def test_the_latest_values_can_be_read_while_samples_are_taken() -> None:
    bench = Bench()
    for metric in ("node_load1", "node_load5", "node_load15"):
        bench.add(metric)
    stop, problems = threading.Event(), []

    def look() -> None:
        while not stop.is_set():
            try:
                bench.sampler.latest()
            except RuntimeError as error:
                problems.append(error)

    thread = threading.Thread(target=look)
    thread.start()
    bench.ticks(300)
    stop.set()
    thread.join(10.0)
    assert not problems
