"""What the disk does to a store: full, torn, damaged, stopped between any two of its steps."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from leptonai.core.clock import FakeClock
from leptonai.core.errors import Fault, InputError
from leptonai.operations.series import Series
from leptonai.operations.store import MetricsStore, StoreLimits, block, record_log, shelf, wal
from leptonai.operations.store.codec import decode_times, decode_values, encode_times, encode_values
from leptonai.operations.store.record_log import Damage, Record, RecordLog, Torn, frame, read_records

NOW = 1_790_000_000.0
NOW_MS = int(NOW * 1000)
LIMITS = StoreLimits(out_of_order_seconds=60)


class Stopped(BaseException):
    """The process ends here."""


def opened(folder: Path, limits: StoreLimits = LIMITS, said: list[str] | None = None) -> MetricsStore:
    say = (lambda message: None) if said is None else said.append
    return MetricsStore.open(folder, limits=limits, clock=FakeClock(start_seconds=NOW), say=say)


def write(store: MetricsStore, times: range, number: int = 0) -> None:
    ids = np.array([store.series_id(Series.of("up", node=str(each))) for each in range(3)])
    for at in times:
        assert store.append(ids, np.full(3, at), np.array([at, -at, 0.1]) + number).num_accepted == 3


def everything(store: MetricsStore) -> dict[str, list[tuple[int, float]]]:
    return {
        repr(each.series): list(zip(each.times_ms.tolist(), each.values.tolist(), strict=True))
        for each in store.select([], 0, 1 << 50)
    }


TIMES = range(NOW_MS - 200_000, NOW_MS, 5000)


@pytest.mark.parametrize("step", range(12))
def test_a_stop_between_any_steps_of_a_cut_loses_and_doubles_nothing(
    tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [step]

    def stops(act):  # type: ignore[no-untyped-def]
        def acting(*words, **named):  # type: ignore[no-untyped-def]
            left[0] -= 1
            if left[0] < 0:
                raise Stopped
            return act(*words, **named)

        return acting

    with opened(tmp_path / "a") as store:
        write(store, TIMES)
        before = everything(store)
        minutes = [each.sums.tolist() for each in store.select([], 0, 1 << 50, step_ms=60_000)]
        with monkeypatch.context() as patch:
            patch.setattr(shelf, "write_block", stops(block.write_block))
            patch.setattr(shelf, "sync_directory", stops(shelf.sync_directory))
            patch.setattr(wal.RecordLog, "append", stops(RecordLog.append))
            patch.setattr(wal.RecordLog, "sync", stops(RecordLog.sync))
            with contextlib.suppress(Stopped):
                store.maintain(NOW, flush=True)
        shutil.copytree(tmp_path / "a", tmp_path / "b")  # what the next process finds
    with opened(tmp_path / "b") as store:
        assert everything(store) == before
        assert [each.sums.tolist() for each in store.select([], 0, 1 << 50, step_ms=60_000)] == minutes
        write(store, range(NOW_MS, NOW_MS + 20_000, 5000))
        store.maintain(NOW, flush=True)
        assert all(len(rows) == len(TIMES) + 4 for rows in everything(store).values())
        assert not list((tmp_path / "b").glob("*.new"))


def test_each_acknowledged_byte_was_forced_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced: dict[int, int] = {}
    real = os.fdatasync

    def watched(file: int) -> None:
        size = os.fstat(file).st_size
        real(file)
        forced[os.fstat(file).st_ino] = size

    monkeypatch.setattr(record_log.os, "fdatasync", watched)
    with opened(tmp_path) as store:
        for at in TIMES:
            write(store, range(at, at + 1))
            for path in tmp_path.glob("*.log"):
                found = path.stat()
                assert forced.get(found.st_ino, 0) == found.st_size


def test_threads_share_the_forcing_and_lose_nothing(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        ids = [store.series_id(Series.of("up", node=str(each))) for each in range(4)]

        def send(number: int) -> None:
            for at in range(100):
                store.append(np.array([number]), np.array([NOW_MS - 1000 + at]), np.array([float(at)]))
                if at % 25 == 0:
                    store.maintain(NOW, flush=True)

        threads = [threading.Thread(target=send, args=(number,)) for number in ids]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
        assert [len(rows) for rows in everything(store).values()] == [100] * 4
        before = everything(store)
    with opened(tmp_path) as store:
        assert everything(store) == before


def test_damage_in_the_middle_of_the_log_is_told(tmp_path: Path) -> None:
    with opened(tmp_path) as store:
        write(store, TIMES)
    (log,) = tmp_path.glob("wal-*.log")
    data = bytearray(log.read_bytes())
    data[len(data) // 2] ^= 0x10
    log.write_bytes(data)
    said: list[str] = []
    with opened(tmp_path, said=said) as store:
        assert store.stats().num_damaged == 1
        assert [len(rows) for rows in everything(store).values()] == [len(TIMES) - 1] * 3
    assert "damaged" in said[0]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=12), max_size=6), st.integers(0, 200), st.integers(0, 255))
def test_any_flipped_byte_of_a_log_costs_one_record_and_is_told(
    payloads: list[bytes], where: int, flip: int
) -> None:
    records = [Record(1, payload) for payload in payloads]
    data = bytearray(b"".join(frame(1, payload) for payload in payloads))
    if not data or not flip:
        assert list(read_records(bytes(data))) == records
        return
    data[where % len(data)] ^= flip
    found = list(read_records(bytes(data)))
    assert sum(isinstance(each, Damage | Torn) for each in found) == 1
    assert [each for each in found if isinstance(each, Record)] == [
        each for at, each in enumerate(records) if at != _hit(payloads, where % len(data))
    ]


def _hit(payloads: list[bytes], where: int) -> int:
    ends = np.cumsum([16 + len(payload) for payload in payloads])
    return int(np.searchsorted(ends, where, "right"))


@pytest.mark.parametrize("place", [0.1, 0.5, 0.97, 1.0])
def test_a_flipped_byte_in_a_chunk_file_is_a_fault_not_a_wrong_value(tmp_path: Path, place: float) -> None:
    with opened(tmp_path) as store:
        write(store, TIMES)
        store.maintain(NOW, flush=True)
    (path,) = tmp_path.glob("raw-*.blk")
    data = bytearray(path.read_bytes())
    data[min(int(len(data) * place), len(data) - 1)] ^= 1
    path.write_bytes(data)
    said: list[str] = []
    with opened(tmp_path, said=said) as store:
        if store.stats().num_damaged:
            assert "not to be had" in said[0]
        else:
            with pytest.raises(Fault, match="damaged"):
                everything(store)


@given(st.binary(max_size=80), st.integers(0, 50))
def test_damaged_bytes_are_a_fault_and_never_another_error(data: bytes, count: int) -> None:
    for decode in (decode_values, decode_times):
        with contextlib.suppress(Fault):
            assert len(decode(data, count)) == count


@given(st.floats(width=64), st.floats(0, 1), st.integers(2, 300))
def test_a_cut_chunk_is_a_fault(value: float, share: float, count: int) -> None:
    values = np.sqrt(np.arange(count) + 2.0)
    values[-1] = value
    code = encode_values(values)
    with pytest.raises(Fault):
        decode_values(code[: int((len(code) - 1) * share)], count)
    code = encode_times(np.arange(count) ** 3)
    with pytest.raises(Fault):
        decode_times(code[: int((len(code) - 1) * share)], count)


FILL = """
import sys
from pathlib import Path
import numpy as np
from leptonai.core.clock import FakeClock
from leptonai.core.errors import Fault
from leptonai.operations.series import Series
from leptonai.operations.store import MetricsStore, StoreLimits
now, said = float(sys.argv[2]), []
rng = np.random.default_rng(1)
store = MetricsStore.open(Path(sys.argv[1]), limits=StoreLimits(out_of_order_seconds=0),
                          clock=FakeClock(start_seconds=now), say=said.append)
ids = np.full(500, store.series_id(Series.of("up")))
acknowledged = []
for turn in range(60):
    times = int(now * 1000) - 10_000_000 + np.arange(turn * 500, turn * 500 + 500) * 100
    assert store.append(ids, times, rng.normal(size=500)).num_accepted == 500
    acknowledged.append(int(times[-1]))
    if turn % 5 == 4:
        store.maintain(now, flush=True)
assert store.stats().num_dropped_files > 0 and all("disk is full" in each for each in said), said
store.close()
with MetricsStore.open(Path(sys.argv[1]), clock=FakeClock(start_seconds=now)) as store:
    (found,) = store.select([], 0, 1 << 50)
    assert found.times_ms[-1] == acknowledged[-1] and found.times_ms[0] > acknowledged[0]
    assert np.all(np.diff(found.times_ms) == 100), "the newest must be whole"
print("ok", len(said))
"""


def test_on_a_full_disk_the_oldest_goes_first_and_it_is_said(tmp_path: Path) -> None:
    mount = (
        f'mount -t tmpfs -o size=160k none {tmp_path} && exec {sys.executable} -c "$FILL" {tmp_path}/s {NOW}'
    )
    words = ["unshare", "-r", "-m", "sh", "-c", mount]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*words[:4], "-c", "true"], capture_output=True).returncode
    ):
        pytest.skip("a file system of one's own is not allowed here")
    done = subprocess.run(words, env={**os.environ, "FILL": FILL}, capture_output=True, text=True, timeout=60)
    if "mount:" in done.stderr:
        pytest.skip("a file system of one's own is not allowed here")
    assert done.stdout.startswith("ok"), done.stderr


def test_a_full_disk_with_nothing_to_drop_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as store:
        write(store, TIMES)
        before = everything(store)

        def full(*words: object) -> None:
            raise record_log.NoSpace

        with monkeypatch.context() as patch:
            patch.setattr(RecordLog, "append", full)
            with pytest.raises(Fault, match="full"):
                store.append(np.array([0]), np.array([NOW_MS]), np.array([1.0]))
        assert everything(store) == before
        write(store, range(NOW_MS, NOW_MS + 1))


def test_a_disk_that_cannot_force_accepts_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(log: RecordLog) -> None:
        raise Fault("could not be forced")

    store = opened(tmp_path)
    write(store, TIMES)
    with monkeypatch.context() as patch:
        patch.setattr(RecordLog, "sync", broken)
        with pytest.raises(Fault):
            store.append(np.array([0]), np.array([NOW_MS]), np.array([1.0]))
    with pytest.raises(Fault):
        store.append(np.array([0]), np.array([NOW_MS + 1]), np.array([1.0]))
    with pytest.raises(Fault):
        store.close()
    with opened(tmp_path) as again:
        write(again, range(NOW_MS + 2, NOW_MS + 3))


def test_a_closed_store_says_so(tmp_path: Path) -> None:
    store = opened(tmp_path)
    store.close()
    store.close()
    with pytest.raises(InputError, match="closed"):
        store.maintain(NOW)
