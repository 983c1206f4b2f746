"""What clients do wrong, by accident or not: it is refused, counted, bounded, and hurts nobody else."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonai.core.clock import FakeClock
from leptonai.core.errors import InputError
from leptonai.operations.ingest import snappy
from leptonai.operations.ingest.intake import Intake
from leptonai.operations.ingest.limits import IngestLimits
from leptonai.operations.ingest.remote_write import MetricInfo, encode_write_request, receive
from leptonai.operations.ingest.wire import bytes_field, double_field, number_field, text_field
from leptonai.operations.series import Sample, Series
from leptonai.operations.store import Matcher, MetricsStore

NOW_SECONDS = 1_700_000_000.0
NOW_MS = int(NOW_SECONDS * 1000)
MILLION = 1_000_000
LIMIT = 1000


class Clocks(FakeClock):
    """Whose wall time can be set, as an operator or a time server does."""

    jump_seconds = 0.0

    def now_seconds(self) -> float:
        return super().now_seconds() + self.jump_seconds


@pytest.fixture
def clock() -> Clocks:
    return Clocks(start_seconds=NOW_SECONDS)


@pytest.fixture
def store(tmp_path: Path, clock: Clocks) -> Iterator[MetricsStore]:
    with MetricsStore.open(tmp_path / "store", clock=clock) as opened:
        yield opened


def intake_of(store: MetricsStore, clock: FakeClock, **limits: float) -> Intake:
    return Intake(store, limits=IngestLimits(**limits), clock=clock)  # type: ignore[arg-type]


def send(intake: Intake, series: Series, *points: tuple[int, float], client: str = "a") -> dict[str, int]:
    return dict(receive(intake, client, encode_write_request([(series, points)])).refused)


def test_late_early_and_double_samples_are_refused_by_name(store: MetricsStore, clock: Clocks) -> None:
    intake, series = intake_of(store, clock), Series.of("m")
    assert send(intake, series, (NOW_MS, 1.0)) == {}
    assert send(intake, series, (NOW_MS - 200_000, 2.0)) == {}  # within the window of five minutes
    assert send(intake, series, (NOW_MS - 400_000, 2.0)) == {"out_of_order": 1}
    assert send(intake, series, (NOW_MS, 1.0)) == {}  # the same again: a sender that got no reply
    assert send(intake, series, (NOW_MS, 5.0)) == {"duplicate": 1}
    assert send(intake, series, (NOW_MS + 3_600_000, 1.0)) == {"too_far_in_future": 1}
    assert send(intake, series, (2**62, 1.0), (-(2**62), 1.0)) == {"too_far_in_future": 1, "too_old": 1}
    (found,) = store.select([], 0, 1 << 60)
    assert found.values.tolist() == [2.0, 1.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 5e-324, -0.0])
def test_numbers_that_are_no_ordinary_ones_are_kept(store: MetricsStore, clock: Clocks, value: float) -> None:
    assert send(intake_of(store, clock), Series.of("m"), (NOW_MS, value)) == {}
    (found,) = store.select([], 0, 1 << 60)
    assert struct.pack("<d", found.values[0]) == struct.pack("<d", value)


def test_samples_without_a_time_are_refused(store: MetricsStore, clock: Clocks) -> None:
    intake = intake_of(store, clock)
    times = (math.nan, math.inf, -math.inf, 1e300, NOW_SECONDS)
    tally = intake.put_samples("test", "a", [Sample(Series.of("m"), at, 1.0) for at in times])
    assert (tally.num_accepted, dict(tally.refused)) == (1, {"no_time": 4})
    assert intake.totals["test", "no_time"] == 4


def test_a_million_series_of_one_client_cost_little_and_nobody_else(
    store: MetricsStore, clock: Clocks
) -> None:
    intake = intake_of(store, clock, series_per_client=LIMIT)
    point = bytes_field(2, double_field(1, 1.0) + number_field(2, NOW_MS))
    name = bytes_field(1, text_field(1, "__name__") + text_field(2, "m"))
    before, after = bytes_field(
        1, name + bytes_field(1, text_field(1, "id") + text_field(2, "#" * 7)) + point
    ).split(b"#" * 7)
    batch = 50_000
    resident = psutil.Process().memory_info().rss
    for first in range(0, MILLION, batch):
        body = b"".join(b"%b%07d%b" % (before, at, after) for at in range(first, first + batch))
        receive(intake, "greedy", snappy.pack(body))
    assert intake.totals["remote_write", "over_the_series_limit"] == MILLION - LIMIT
    assert (store.stats().num_series, intake.num_active_series()) == (LIMIT, LIMIT)
    grown = psutil.Process().memory_info().rss - resident
    assert grown < 100 << 20  # of one request under way; the series themselves would take ten times that
    assert send(intake, Series.of("other"), (NOW_MS, 1.0), client="b") == {}


def test_clients_that_fell_silent_are_forgotten(store: MetricsStore, clock: Clocks) -> None:
    intake = intake_of(store, clock, active_seconds=60.0)
    for turn in range(50):
        send(intake, Series.of("m"), (NOW_MS, 1.0), client=f"client {turn}")
        clock.advance(30.0)
    assert intake.num_active_series() <= 5


def test_metadata_has_its_bounds(store: MetricsStore, clock: Clocks) -> None:
    intake = intake_of(store, clock, metrics=3)
    infos = [MetricInfo(name=f"m{at}", kind="gauge", help="x" * 10_000) for at in range(5)]
    receive(intake, "a", encode_write_request([], [*infos, MetricInfo(name="a b", kind="gauge")]))
    assert sorted(store.metadata()) == ["m0", "m1", "m2"]
    assert max(len(each.help) for each in store.metadata().values()) == 4096
    assert intake.totals["remote_write", "over_the_metadata_limit"] == 2
    assert intake.totals["remote_write", "metadata_without_a_name"] == 1


def test_a_metric_that_changes_its_type_keeps_its_samples_and_is_told(tmp_path: Path, clock: Clocks) -> None:
    said: list[str] = []
    with MetricsStore.open(tmp_path / "other", clock=clock, say=said.append) as store:
        intake, series = intake_of(store, clock), Series.of("m_total")
        for turn, kind in enumerate(("counter", "counter", "gauge")):
            request = [(series, [(NOW_MS + turn, float(turn))])]
            receive(intake, "a", encode_write_request(request, [MetricInfo(name="m_total", kind=kind)]))
        assert store.stats().num_type_changes == 1
        assert store.metadata()["m_total"].kind == "gauge"
        (found,) = store.select([], 0, 1 << 60)
        assert found.values.tolist() == [0.0, 1.0, 2.0]
    assert said == ["m_total was a counter and is now a gauge"]


def test_clocks_that_jump_lose_only_what_cannot_be_placed(store: MetricsStore, clock: Clocks) -> None:
    intake, series = intake_of(store, clock), Series.of("m")
    store.maintain(clock.now_seconds())
    assert send(intake, series, (NOW_MS, 1.0)) == {}
    # the sender's clock goes back an hour, and is set right again
    assert send(intake, series, (NOW_MS - 3_600_000, 2.0)) == {"out_of_order": 1}
    assert send(intake, series, (NOW_MS + 1000, 3.0)) == {}
    # ours goes back a day: what honest clients send is from the future, until it is set right
    clock.jump_seconds = -86_400.0
    store.maintain(clock.now_seconds())
    assert send(intake, series, (NOW_MS + 2000, 4.0)) == {"too_far_in_future": 1}
    # ours goes ahead ten years: what comes is too old, but nothing that is there is dropped
    clock.jump_seconds = 3650 * 86_400.0
    store.maintain(clock.now_seconds())
    assert send(intake, series, (NOW_MS + 3000, 5.0)) == {"too_old": 1}
    clock.jump_seconds = 0.0
    store.maintain(clock.now_seconds())
    assert send(intake, series, (NOW_MS + 4000, 6.0)) == {}
    assert store.stats().num_clock_jumps == 3
    (found,) = store.select([Matcher("__name__", "=", "m")], 0, 1 << 60)
    assert found.values.tolist() == [1.0, 3.0, 6.0]


GOOD = snappy.unpack(encode_write_request([(Series.of("m", a="b"), [(NOW_MS, 1.0)])]), limit_bytes=10_000)


@given(st.integers(0, len(GOOD)), st.binary(max_size=8), st.booleans())
@settings(max_examples=300, deadline=None)
def test_a_damaged_request_is_refused_whole_or_read(
    tmp_path_factory: pytest.TempPathFactory, at: int, junk: bytes, is_packed: bool
) -> None:
    damaged = GOOD[:at] + junk + GOOD[at + len(junk) :]
    packed = snappy.pack(GOOD)
    body = snappy.pack(damaged) if is_packed else packed[:at] + junk + packed[at + len(junk) :]
    with MetricsStore.open(
        SHARED.folder(tmp_path_factory), clock=FakeClock(start_seconds=NOW_SECONDS)
    ) as store:
        intake = intake_of(store, FakeClock(start_seconds=NOW_SECONDS))
        before = store.stats().num_samples
        says, tally = "", None
        try:
            tally = receive(intake, "a", body)
        except InputError as error:
            says = error.message
        if tally is None:
            assert says
            assert "\n" not in says
            assert store.stats().num_samples == before
        else:
            assert tally.num_accepted + tally.num_refused <= 1 + len(junk)


class _Shared:
    path: Path | None = None

    def folder(self, factory: pytest.TempPathFactory) -> Path:
        self.path = self.path or factory.mktemp("damaged")
        return self.path


SHARED = _Shared()


def test_a_block_that_claims_to_be_huge_is_not_unpacked() -> None:
    huge = bytes([0xFF, 0xFF, 0xFF, 0xFF, 0x0F]) + b"\x00" * 20
    with pytest.raises(InputError):
        snappy.unpack(huge, limit_bytes=1000)
    with pytest.raises(InputError, match="unpacked"):
        snappy.unpack(snappy.pack(np.zeros(2000, np.int8).tobytes()), limit_bytes=1000)
