"""The sources on the machine the tests run on, and what they read on its way to a collector."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.core.clock import FakeClock, SystemClock
from leptonai.operations.agent.catalogue import CATALOGUE
from leptonai.operations.agent.cgroup import open_cgroup
from leptonai.operations.agent.clock_state import open_clock
from leptonai.operations.agent.cpu import open_cpu, open_pressure
from leptonai.operations.agent.disks import open_disks, open_space
from leptonai.operations.agent.infiniband import open_infiniband
from leptonai.operations.agent.memory import open_edac, open_memory
from leptonai.operations.agent.network import open_links, open_network
from leptonai.operations.agent.nvidia import open_nvidia
from leptonai.operations.agent.remote_write import Batch, compressor, snappy_literal
from leptonai.operations.agent.sensors import open_hwmon, open_thermal
from leptonai.operations.agent.smart import open_smart
from leptonai.operations.agent.source import Absent, Place, Reading, SeriesTable
from leptonai.operations.agent.spool import Parcel, Spool
from leptonai.operations.ingest.intake import Intake
from leptonai.operations.ingest.limits import IngestLimits
from leptonai.operations.ingest.remote_write import receive
from leptonai.operations.ingest.snappy import unpack
from leptonai.operations.series import Series
from leptonai.operations.store import MetricsStore

OPENERS = (
    open_cgroup, open_clock, open_cpu, open_pressure, open_disks, open_space, open_infiniband, open_memory, open_edac,
    open_links, open_network, open_nvidia, open_hwmon, open_thermal, open_smart,
)  # fmt: skip
EVERYWHERE = (open_cpu, open_memory, open_disks, open_space, open_network, open_clock)


@pytest.mark.parametrize("opener", OPENERS, ids=lambda each: each.__name__)
def test_a_source_is_read_again_and_again_or_says_why_not(opener: object) -> None:
    table = SeriesTable({"node": "a"})
    source = opener(Place(table=table))  # type: ignore[operator]
    if isinstance(source, Absent):
        assert opener not in EVERYWHERE
        assert source.reason
        return
    for _ in range(2):
        readings: list[Reading] = []
        source.read(readings)
        keys = [key for key, _ in readings]
        assert len(set(keys)) == len(keys)
        for key, value in readings:
            series = table.series[key]
            assert series.name in CATALOGUE
            assert series.get("node") == "a"
            assert not math.isnan(value)
    assert readings or opener not in EVERYWHERE
    source.close()
    source.close()


def test_what_is_read_arrives_as_it_was(tmp_path: Path) -> None:
    table, readings = SeriesTable({"node": "a"}), []  # type: ignore[var-annotated]
    for opener in (open_cpu, open_memory):
        source = opener(Place(table=table))
        assert not isinstance(source, Absent)
        source.read(readings)
        source.close()
    batch, clock = Batch(table.series), SystemClock()
    at = round(clock.now_seconds(), 3)
    batch.add(readings, at_seconds=at)
    with MetricsStore.open(tmp_path / "store", clock=clock) as store:
        tally = receive(
            Intake(store, limits=IngestLimits(), clock=clock),
            "here",
            compressor()(batch.take(with_metadata=True)),
        )
        assert tally.num_accepted == len(readings)
        got = {
            each.series: (each.times_ms.tolist(), each.values.tolist())
            for each in store.select([], 0, 1 << 60)
        }
        assert store.metadata()["node_memory_MemTotal_bytes"].kind == "gauge"
    assert got == {table.series[key]: ([round(at * 1000)], [value]) for key, value in readings}


@given(st.binary(max_size=70_000))
def test_what_is_not_compressed_is_a_snappy_block_all_the_same(data: bytes) -> None:
    assert unpack(snappy_literal(data), limit_bytes=1 << 20) == data


def parcel(number: int, size: int = 100) -> Parcel:
    return Parcel("samples", 10, f"{number:08}".encode() * (size // 8))


def drained(spool: Spool) -> list[Parcel]:
    found = []
    while (first := spool.first()) is not None:
        found.append(first)
        spool.sent(first)
    return found


def test_what_was_not_sent_is_there_after_a_restart(tmp_path: Path) -> None:
    spool = Spool(tmp_path, clock=FakeClock())
    for number in range(5):
        spool.append(parcel(number))
    first = spool.first()
    assert first == parcel(0)
    spool.sent(first)
    spool.close()
    again = Spool(tmp_path, clock=FakeClock())
    assert drained(again) == [parcel(number) for number in range(1, 5)]
    again.close()


def test_a_full_spool_drops_the_oldest_and_counts_it(tmp_path: Path) -> None:
    spool = Spool(tmp_path, max_bytes=64 << 10, clock=FakeClock())
    for number in range(300):
        spool.append(parcel(number, 1000))
    assert spool.size_bytes <= 64 << 10
    left = drained(spool)
    assert left == [parcel(number, 1000) for number in range(300 - len(left), 300)]
    assert spool.dropped["full"] == 10 * (300 - len(left))
    spool.close()


def test_damage_costs_what_follows_in_its_segment_and_is_counted(tmp_path: Path) -> None:
    spool = Spool(tmp_path, clock=FakeClock())
    for number in range(5):
        spool.append(parcel(number))
    spool.close()
    (segment,) = tmp_path.glob("*.spool")
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    again = Spool(tmp_path, clock=FakeClock())
    found = drained(again)
    again.append(parcel(9))
    assert found == [parcel(number) for number in range(len(found))]
    assert len(found) < 5
    assert drained(again) == [parcel(9)]
    assert again.dropped["damaged"] > 0
    again.close()


def test_the_agents_modules_are_light() -> None:
    program = (
        "import sys; from leptonai.operations.agent import cpu, nvidia, registry, remote_write, spool;"
        "print(sorted({'numpy', 'sqlalchemy', 'pydantic', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_series_are_numbered_once() -> None:
    table = SeriesTable({"node": "a"})
    assert table.key("node_load1") == table.key("node_load1") == 0
    assert table.series == [Series.of("node_load1", node="a")]
