"""What a store keeps, for how long, in which tier, and what it says when something goes."""

from __future__ import annotations

import math
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonai.core.clock import FakeClock
from leptonai.core.errors import InputError, Refused
from leptonai.operations.series import Series
from leptonai.operations.store import Matcher, MetricsStore, StoreLimits, TierLimits, lttb
from leptonai.operations.store.query import Selected
from leptonai.operations.store.shelf import MERGE_FILES

HOUR_MS = 3_600_000
BEGAN_MS = 1_790_000_000_000 // HOUR_MS * HOUR_MS
UP = Series.of("up")


def opened(folder: Path, clock: FakeClock, said: list[str] | None = None, **limits: object) -> MetricsStore:
    wanted = StoreLimits(**limits)  # type: ignore[arg-type]
    say = (lambda message: None) if said is None else said.append
    return MetricsStore.open(folder, limits=wanted, clock=clock, say=say)


def fill(store: MetricsStore, clock: FakeClock, hours: int, *, every_seconds: int = 10) -> None:
    """Hours of samples, each cut by itself, the clock moving along; the value is the number of the sample."""
    number = store.series_id(UP)
    for hour in range(hours):
        count = 3600 // every_seconds
        now_ms = round(clock.now_seconds() * 1000)
        times = now_ms + np.arange(count) * every_seconds * 1000
        clock.advance(3600)
        assert (
            store.append(np.full(count, number), times, np.arange(count) + hour * 1e4).num_accepted == count
        )
        store.maintain(clock.now_seconds(), flush=True)


def one(
    store: MetricsStore, step_ms: int | None = None, start_ms: int = 0, end_ms: int = 1 << 50
) -> Selected:
    (found,) = store.select([Matcher("__name__", "=", "up")], start_ms, end_ms, step_ms=step_ms)
    return found


def clock_at_start() -> FakeClock:
    return FakeClock(start_seconds=BEGAN_MS / 1000)


SHORT = TierLimits(age_seconds=2 * 3600, size_bytes=1 << 30)
LONG = TierLimits(age_seconds=1000 * 3600, size_bytes=1 << 30)


def test_what_the_finer_tier_dropped_comes_from_the_coarser(tmp_path: Path) -> None:
    clock = clock_at_start()
    with opened(tmp_path, clock, raw=SHORT, minute=LONG, out_of_order_seconds=0) as store:
        fill(store, clock, 6)
        raw = one(store)
        assert raw.times_ms[0] >= BEGAN_MS + 3 * HOUR_MS
        for step in (10_000, 60_000, 300_000, HOUR_MS):
            view = one(store, step)
            assert view.counts.sum() == 6 * 360, step  # none missing, none twice
            assert view.minima.min() == 0.0
            assert view.maxima.max() == 5e4 + 359
        assert one(store, 10_000).tiers == ("raw", "minute")
        assert one(store, HOUR_MS).tiers == ("hour",)


def test_age_and_size_drop_whole_files_and_series_of_which_nothing_is_left(tmp_path: Path) -> None:
    clock, said = clock_at_start(), []
    with opened(tmp_path, clock, said, raw=SHORT, minute=SHORT, hour=SHORT) as store:
        fill(store, clock, 1)
        other = store.series_id(Series.of("other"))
        for _ in range(4):
            clock.advance(3600)
            times = np.array([round(clock.now_seconds() * 1000)])
            store.append(np.array([other]), times, np.array([1.0]))
            store.maintain(clock.now_seconds(), flush=True)
        assert [each.name for each in store.series([])] == ["other"]
        again = store.series_id(UP)
        assert again > other
    with opened(tmp_path, clock) as store:
        assert store.series_id(UP) == again
        assert store.append(np.array([0]), times + 1, np.array([1.0])).num_unknown_series == 1


def test_a_tier_over_its_size_drops_its_oldest_and_says_so(tmp_path: Path) -> None:
    clock, said = clock_at_start(), []
    tiny = TierLimits(age_seconds=10**6, size_bytes=600)
    with opened(tmp_path, clock, said, raw=tiny, out_of_order_seconds=0) as store:
        fill(store, clock, 6)
        assert store.stats().bytes_per_tier["raw"] <= tiny.size_bytes
        assert one(store).times_ms[-1] >= BEGAN_MS + 5 * HOUR_MS
        assert one(store).times_ms[0] > BEGAN_MS
    assert any("over its size" in message for message in said)


def test_many_small_files_become_one_and_hold_the_same(tmp_path: Path) -> None:
    clock = clock_at_start()
    with opened(tmp_path, clock, raw=LONG, minute=LONG, out_of_order_seconds=0) as store:
        fill(store, clock, MERGE_FILES + 1)
        names = sorted(path.name for path in tmp_path.glob("*.blk"))
        assert len(names) == 2 * 3
        assert one(store).values.tolist() == [
            hour * 1e4 + at for hour in range(MERGE_FILES + 1) for at in range(360)
        ]
        before = one(store, 60_000).sums.tolist()
    with opened(tmp_path, clock, raw=LONG, minute=LONG) as store:
        assert one(store, 60_000).sums.tolist() == before


def test_files_that_a_stopped_merge_left_are_not_read_twice(tmp_path: Path) -> None:
    clock = clock_at_start()
    with opened(tmp_path, clock, raw=LONG, minute=LONG, out_of_order_seconds=0) as store:
        fill(store, clock, MERGE_FILES - 1)
        kept = {path: path.read_bytes() for path in tmp_path.glob("*.blk")}
        fill(store, clock, 1)
        before = one(store, 60_000).counts.tolist()
    for path, data in kept.items():
        path.write_bytes(data)
    with opened(tmp_path, clock, raw=LONG, minute=LONG) as store:
        assert one(store, 60_000).counts.tolist() == before
        assert len(list(tmp_path.glob("*.blk"))) == 3


def test_a_clock_that_jumps_is_told_and_drops_nothing(tmp_path: Path) -> None:
    class Set(FakeClock):
        offset_seconds = 0.0

        def now_seconds(self) -> float:
            return super().now_seconds() + self.offset_seconds

    clock, said = Set(start_seconds=BEGAN_MS / 1000), []
    with opened(tmp_path, clock, said, raw=SHORT, out_of_order_seconds=0) as store:
        fill(store, clock, 2)
        clock.offset_seconds = 10 * 86_400.0
        ahead = np.array([round(clock.now_seconds() * 1000)])
        assert store.append(np.array([0]), ahead, np.array([1.0])).num_accepted == 1
        store.maintain(clock.now_seconds())
        assert len(one(store).values) == 721
        assert store.stats().num_clock_jumps == 1
        assert "+864000 s" in said[0]
        clock.offset_seconds = 0.0
        store.maintain(clock.now_seconds())
        assert len(one(store).values) == 721


def test_a_metric_that_changes_its_kind_is_told(tmp_path: Path) -> None:
    clock, said = clock_at_start(), []
    with opened(tmp_path, clock, said) as store:
        store.set_metadata("up", "gauge", "", "Whether it is up.")
        store.set_metadata("up", "gauge", "", "Whether the target is up.")
        assert not said
        store.set_metadata("up", "counter")
        assert said == ["up was a gauge and is now a counter"]
        assert store.stats().num_type_changes == 1
    with opened(tmp_path, clock) as store:
        assert store.metadata()["up"].kind == "counter"


def test_series_beyond_the_limit_are_refused_and_counted(tmp_path: Path) -> None:
    with opened(tmp_path, clock_at_start(), num_series=50) as store:
        for number in range(50):
            assert store.series_id(Series.of("up", id=str(number))) == number
        for number in range(50, 2000):
            with pytest.raises(Refused, match="50 series"):
                store.series_id(Series.of("up", id=str(number)))
        assert store.series_id(Series.of("up", id="7")) == 7  # those known stay welcome
        with pytest.raises(Refused):
            store.series_id(Series.of("up", id="x" * 10_000))
        assert store.stats().refused == {"series": 1951}
        assert store.stats().num_series == 50


SAMPLES = st.lists(
    st.tuples(st.integers(0, 2), st.integers(-200, 40), st.floats(width=64) | st.sampled_from([1.0, 2.0])),
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(batches=st.lists(st.tuples(SAMPLES, st.booleans()), max_size=5))
def test_the_store_holds_what_a_plain_list_would(
    batches: list[tuple[list[tuple[int, int, float]], bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder, clock = tmp_path_factory.mktemp("model"), clock_at_start()
    model: list[dict[int, bytes]] = [{}, {}, {}]
    newest, floor = [-math.inf] * 3, [-math.inf] * 3
    limits = {"out_of_order_seconds": 60, "future_seconds": 20}
    store = opened(folder, clock, **limits)
    for each in range(3):
        store.series_id(Series.of("up", id=str(each)))
    for samples, flush in batches:
        wanted = 0
        for own, second, value in samples:
            bits = struct.pack("<d", value)
            late = second < newest[own] - 60 or second <= floor[own]
            if second <= 20 and not late and second not in model[own]:
                model[own][second] = bits
                newest[own] = max(newest[own], second)
                wanted += 1
        times = np.array([BEGAN_MS + second * 1000 for _, second, _ in samples], np.int64)
        ids = np.array([own for own, _, _ in samples], np.int64)
        values = np.array([value for _, _, value in samples], np.float64)
        done = store.append(ids, times, values)
        assert done.num_accepted == wanted
        assert done.num_accepted + done.num_repeated + done.num_refused == len(samples)
        if flush:
            store.maintain(clock.now_seconds(), flush=True)
            floor = [float(max(each, default=-math.inf)) for each in model]
        else:
            store.close()
            store = opened(folder, clock, **limits)
    for own, rows in enumerate(model):
        found = list(store.select([Matcher("id", "=", str(own))], 0, 1 << 50))
        got = [
            (int(at), struct.pack("<d", value))
            for each in found
            for at, value in zip(each.times_ms, each.values, strict=True)
        ]
        assert got == [(BEGAN_MS + second * 1000, rows[second]) for second in sorted(rows)]
        view = list(store.select([Matcher("id", "=", str(own))], 0, 1 << 50, step_ms=60_000))
        plain = [
            value for (value,) in (struct.unpack("<d", each) for each in rows.values()) if value == value
        ]
        if plain:
            assert np.nanmin(view[0].minima) == min(plain)
            assert np.nanmax(view[0].maxima) == max(plain)
            assert view[0].counts.sum() == len(plain)
    store.close()


def test_lttb_keeps_the_ends_and_the_spike() -> None:
    times = np.arange(1000) * 1000
    values = np.zeros(1000)
    values[617] = 50.0
    values[300:310] = np.nan
    kept = lttb(times, values, 40)
    assert len(kept) == 40
    assert {0, 617, 999} <= set(kept.tolist())
    assert (np.diff(kept) > 0).all()
    assert lttb(times[:5], values[:5], 40).tolist() == [0, 1, 2, 3, 4]


def test_wrong_calls_are_told(tmp_path: Path) -> None:
    with opened(tmp_path, clock_at_start()) as store:
        with pytest.raises(InputError, match="equally long"):
            store.append(np.array([0]), np.array([1, 2]), np.array([1.0]))
        with pytest.raises(InputError, match="step"):
            store.select([], 0, 1, step_ms=0)
        assert store.append(np.array([9]), np.array([BEGAN_MS]), np.array([1.0])).num_unknown_series == 1
    with pytest.raises(InputError, match="limits"):
        StoreLimits(num_series=0)
