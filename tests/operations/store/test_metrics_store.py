"""Samples come out as they went in: after a restart, a kill, a torn log; and what is refused is counted."""

from __future__ import annotations

import math
import os
import random
import signal
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonai.core.clock import FakeClock
from leptonai.core.errors import InputError, Refused
from leptonai.operations.series import STALE_NAN, Series
from leptonai.operations.store import Matcher, MetricsStore, StoreLimits
from leptonai.operations.store.codec import (
    decode_times,
    decode_values,
    encode_times,
    encode_values,
)
from leptonai.operations.store.xor_code import (
    python_xor_decode,
    python_xor_encode,
    xor_decode,
    xor_encode,
)

NOW = 1_790_000_000.0
NOW_MS = int(NOW * 1000)
WORDS = st.lists(st.integers(0, 2**64 - 1), max_size=60)


def opened(folder: Path, **changes: object) -> MetricsStore:
    limits = StoreLimits(**changes)  # type: ignore[arg-type]
    return MetricsStore.open(folder / "store", limits=limits, clock=FakeClock(start_seconds=NOW))


def put(store: MetricsStore, series: Series, points: list[tuple[int, float]]) -> object:
    number = store.series_id(series)
    times = np.array([at for at, _ in points], np.int64)
    values = np.array([value for _, value in points], np.float64)
    return store.append(np.full(len(points), number), times, values)


def got(store: MetricsStore, name: str = "up", step_ms: int | None = None) -> list[tuple[int, bytes]]:
    """Times and the bits of values of one metric's only series."""
    found = list(store.select([Matcher("__name__", "=", name)], 0, NOW_MS + 10**9, step_ms=step_ms))
    if not found:
        return []
    (one,) = found
    return [(int(at), struct.pack("<d", value)) for at, value in zip(one.times_ms, one.values, strict=True)]


def bits(points: list[tuple[int, float]]) -> list[tuple[int, bytes]]:
    return [(at, struct.pack("<d", value)) for at, value in points]


POINTS = [
    (NOW_MS - 5000, 1.5), (NOW_MS - 4000, math.nan), (NOW_MS - 3000, STALE_NAN), (NOW_MS - 2000, -0.0),
    (NOW_MS - 1000, math.inf), (NOW_MS, 5e-324),
]  # fmt: skip


@pytest.mark.parametrize("flush", [False, True])
def test_samples_come_back_bit_for_bit_after_a_restart(tmp_path: Path, flush: bool) -> None:
    with opened(tmp_path) as store:
        put(store, Series.of("up", node="a"), POINTS)
        assert got(store) == bits(POINTS)
        if flush:
            store.maintain(NOW, flush=True)
            assert got(store) == bits(POINTS)
    with opened(tmp_path) as store:
        assert got(store) == bits(POINTS)
        assert store.stats().num_samples == len(POINTS)
        assert store.label_values("node") == ["a"]
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "store").rglob("*"))


@given(WORDS)
def test_any_values_survive_the_code(words: list[int]) -> None:
    raw = np.array(words, np.uint64)
    coded = xor_encode(raw)
    assert coded == python_xor_encode(raw)
    assert xor_decode(coded, len(raw)).tolist() == python_xor_decode(coded, len(raw)).tolist() == words
    values = raw.view(np.float64)
    again = decode_values(encode_values(values), len(values))
    assert again.view(np.uint64).tolist() == words


@given(st.lists(st.integers(-(2**62), 2**62), max_size=60))
def test_any_times_survive_the_code(times: list[int]) -> None:
    array = np.array(sorted(times), np.int64)
    assert decode_times(encode_times(array), len(array)).tolist() == array.tolist()


@given(st.lists(st.decimals(-1000, 1000, places=2).map(float), min_size=1, max_size=200))
def test_numbers_as_people_write_them_survive_too(values: list[float]) -> None:
    array = np.array(values)
    assert decode_values(encode_values(array), len(array)).tobytes() == array.tobytes()


def test_what_is_refused_is_counted(tmp_path: Path) -> None:
    with opened(tmp_path, out_of_order_seconds=60, future_seconds=10, num_series=2) as store:
        up = Series.of("up")
        put(store, up, [(NOW_MS, 1.0), (NOW_MS - 30_000, 2.0)])  # late, but within the window
        put(store, up, [(NOW_MS, 1.0), (NOW_MS, 3.0), (NOW_MS - 90_000, 4.0), (NOW_MS + 60_000, 5.0)])
        assert got(store) == bits([(NOW_MS - 30_000, 2.0), (NOW_MS, 1.0)])
        store.series_id(Series.of("other"))
        with pytest.raises(Refused):
            store.series_id(Series.of("third"))
        refused = store.stats().refused
        assert sum(refused.values()) == 4
        assert refused["series"] == 1
        assert len(refused) == 4


def test_matchers_select_series(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        for node in ("a1", "a2", "b1"):
            put(store, Series.of("up", node=node), [(NOW_MS, 1.0)])
        put(store, Series.of("down"), [(NOW_MS, 1.0)])

        def nodes(*matchers: Matcher) -> list[str]:
            return [each.get("node") for each in store.series(matchers)]

        assert nodes(Matcher("node", "=~", "a.")) == ["a1", "a2"]
        assert nodes(Matcher("node", "=~", "a")) == []  # anchored
        assert nodes(Matcher("node", "!=", "a1"), Matcher("__name__", "=", "up")) == ["a2", "b1"]
        assert nodes(Matcher("node", "!~", "a.|b.")) == [""]
        assert nodes(Matcher("node", "=", "")) == [""]
        with pytest.raises(InputError):
            Matcher("node", "=~", "(")


def test_tiers_keep_extremes(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    start = (NOW_MS - 7_200_000) // 3_600_000 * 3_600_000
    times = start + np.arange(0, 7200) * 1000
    values = rng.normal(size=7200)
    values[[100, 5000]] = 99.0, -99.0
    with opened(tmp_path) as store:
        put(store, Series.of("up"), list(zip(times.tolist(), values.tolist(), strict=True)))
        store.maintain(NOW, flush=True)
        for step in (60_000, 3_600_000):
            (found,) = store.select([Matcher("__name__", "=", "up")], start, int(times[-1]), step_ms=step)
            assert found.tiers == ("minute",) if step == 60_000 else ("hour",)
            for at, low, high in zip(found.times_ms, found.minima, found.maxima, strict=True):
                inside = values[(times >= at) & (times < at + step)]
                assert (low, high) == (inside.min(), inside.max())
            assert found.maxima.max() == 99.0
            assert found.minima.min() == -99.0


def test_one_writer_at_a_time(tmp_path: Path) -> None:
    with opened(tmp_path), pytest.raises(InputError, match="another process has the metrics store open"):
        opened(tmp_path)


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0.0, 1.0))
def test_a_log_torn_anywhere_gives_back_a_beginning(
    share: float, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("torn")
    points = [(NOW_MS - 1000 * back, float(back)) for back in range(20, 0, -1)]
    with opened(folder) as store:
        for point in points:
            put(store, Series.of("up"), [point])
    (log,) = (folder / "store").glob("wal-*.log")
    os.truncate(log, int(log.stat().st_size * share))
    with opened(folder) as store:
        found = got(store)
        assert found == bits(points)[: len(found)]
        put(store, Series.of("up"), [(NOW_MS, 7.0)])
        assert got(store)[-1] == bits([(NOW_MS, 7.0)])[0]


WRITER = """
import sys
from pathlib import Path
import numpy as np
from leptonai.core.clock import FakeClock
from leptonai.operations.series import Series
from leptonai.operations.store import MetricsStore
store = MetricsStore.open(Path(sys.argv[1]), clock=FakeClock(start_seconds=float(sys.argv[2])))
number, begin = store.series_id(Series.of("up")), int(sys.argv[3])
for step in range(begin, begin + 100_000):
    store.append(np.array([number]), np.array([step]), np.array([float(step)]))
    print(step, flush=True)
    if step % 40 == 39:
        store.maintain(float(sys.argv[2]), flush=True)
"""


def test_what_was_acknowledged_survives_kill_9(tmp_path: Path) -> None:
    rng, acknowledged = random.Random(3), []
    for turn in range(3):
        begin = NOW_MS + turn * 200_000 - 600_000
        words = [sys.executable, "-c", WRITER, str(tmp_path / "store"), str(NOW), str(begin)]
        with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(rng.randrange(20, 120)):
                acknowledged.append(int(writer.stdout.readline()))
            writer.send_signal(signal.SIGKILL)
            acknowledged += [int(line) for line in writer.stdout if line.endswith("\n")]
    with opened(tmp_path) as store:
        found = {at for at, _ in got(store)}
    assert len(acknowledged) > 60
    assert set(acknowledged) <= found
    assert len(found) <= len(acknowledged) + 3  # at most the one in flight at each kill
