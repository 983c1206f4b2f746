"""A writing process killed again and again with ``kill -9``: is every sample it acknowledged still there?

``python -m benchmarks.metrics_store_kill --store FOLDER --first N --say PIPE`` is the writer. It appends from several
threads, cuts chunks all the while, and says of each call that it returned.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leptonai.core.clock import FakeClock
from leptonai.operations.series import Series
from leptonai.operations.store import MetricsStore, StoreLimits

BEGAN_MS = 1_790_000_000_000
NUM_THREADS, NUM_SERIES = 3, 20
"""Of the writer; each thread has series of its own."""
MOST_SECONDS = 0.4
"""Of life after the first acknowledgement: several cuts and many appends."""
_ONE_LIFE = 1_000_000
_LIMITS = StoreLimits(chunk_seconds=1, out_of_order_seconds=1, head_samples=20_000)
"""Small, so that cuts, merges and fresh logs are as often hit as appends are."""
_NOTE = struct.Struct("<II")
_CLOCK_SECONDS = BEGAN_MS / 1000 + 100_000


def value_of(thread: int, tick: int) -> NDArray[np.float64]:
    """The values that a thread writes at a tick; to be known again without being remembered."""
    return (tick * 1.1 + thread * 1000 + np.arange(NUM_SERIES) / 7) % 997


def _times(tick: int) -> NDArray[np.int64]:
    return np.full(NUM_SERIES, BEGAN_MS + tick)


def write(folder: Path, first: int, say: int) -> None:
    """Append until killed; each note (thread, tick) is one short write to a pipe, and so whole or not there."""
    store = MetricsStore.open(folder, limits=_LIMITS, clock=FakeClock(start_seconds=_CLOCK_SECONDS))

    def append(thread: int) -> None:
        ids = np.array([store.series_id(_series(thread, number)) for number in range(NUM_SERIES)])
        for tick in range(first, first + _ONE_LIFE):
            if store.append(ids, _times(tick), value_of(thread, tick)).num_accepted == NUM_SERIES:
                os.write(say, _NOTE.pack(thread, tick))

    for thread in range(NUM_THREADS):
        threading.Thread(target=append, args=(thread,), daemon=True).start()
    while True:
        store.maintain(_CLOCK_SECONDS)
        time.sleep(0.01)


def _series(thread: int, number: int) -> Series:
    return Series.of("written", thread=str(thread), number=str(number))


def one_life(folder: Path, first: int, random_numbers: random.Random) -> set[tuple[int, int]]:
    """Start the writer, kill it at some instant, and return what it had acknowledged."""
    hear, say = os.pipe()
    argv = [sys.executable, "-m", "benchmarks.metrics_store_kill", "--store", str(folder)]
    argv += ["--first", str(first), "--say", str(say)]
    writer = subprocess.Popen(argv, pass_fds=(say,))
    os.close(say)
    heard = bytearray(os.read(hear, 1 << 16))
    deadline = time.monotonic() + random_numbers.random() * MOST_SECONDS
    while (left := deadline - time.monotonic()) > 0:
        time.sleep(min(left, 0.001))
        heard += os.read(hear, 1 << 16) if left > 0.002 else b""
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    while part := os.read(hear, 1 << 16):
        heard += part
    os.close(hear)
    return {(thread, tick) for thread, tick in _NOTE.iter_unpack(bytes(heard))}


def kill_and_compare(num_kills: int, *, seed: int) -> Mapping[str, float]:
    """Kill the writer many times on one directory, then look for every sample it ever acknowledged."""
    random_numbers = random.Random(seed)
    acknowledged: set[tuple[int, int]] = set()
    said: list[str] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder, first = Path(scratch) / "store", 0
        for _ in range(num_kills):
            acknowledged |= one_life(folder, first, random_numbers)
            first = 1 + max((tick for _, tick in acknowledged), default=first) + NUM_THREADS * 1000
        lost, wrong = _missing(folder, acknowledged, said)
    return {
        "kills": num_kills, "acknowledged": len(acknowledged) * NUM_SERIES, "lost": lost + wrong,
        "damaged": sum("damaged" in message for message in said),
        "torn": sum("torn" in message for message in said),
    }  # fmt: skip


def _missing(folder: Path, acknowledged: set[tuple[int, int]], said: list[str]) -> tuple[int, int]:
    lost = wrong = 0
    clock = FakeClock(start_seconds=_CLOCK_SECONDS)
    with MetricsStore.open(folder, limits=_LIMITS, clock=clock, say=said.append) as store:
        found: dict[tuple[int, int], dict[int, float]] = {}
        for each in store.select([], BEGAN_MS, BEGAN_MS + (1 << 40)):
            own = found[int(each.series.get("thread")), int(each.series.get("number"))] = {}
            own.update(zip((each.times_ms - BEGAN_MS).tolist(), each.values.tolist(), strict=True))
            wrong += len(each.times_ms) - len(own)  # something came back twice
        for thread, tick in acknowledged:
            for number, value in enumerate(value_of(thread, tick).tolist()):
                there = found.get((thread, number), {}).get(tick)
                lost += there is None
                wrong += there is not None and there != value
    return lost, wrong


def main() -> None:
    """Be the writer."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--first", type=int, required=True)
    parser.add_argument("--say", type=int, required=True)
    words = parser.parse_args()
    write(words.store, words.first, words.say)


if __name__ == "__main__":
    main()
