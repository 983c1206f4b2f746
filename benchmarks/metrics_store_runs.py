"""One contestant of ``metrics_store``.

``python -m benchmarks.metrics_store_runs --report FILE --what ingest|size|kill|query [--seed N] [--quick]``
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.metrics_store_kill import kill_and_compare
from benchmarks.metrics_store_trace import load, record
from leptonai.core.clock import FakeClock
from leptonai.operations.ingest.intake import Intake
from leptonai.operations.ingest.limits import IngestLimits
from leptonai.operations.ingest.remote_write import encode_write_request, receive
from leptonai.operations.series import NAME_LABEL, Series
from leptonai.operations.store import Matcher, MetricsStore

NUM_SERIES = 300
NUM_HOSTS, NUM_SENDERS, SAMPLES_PER_REQUEST = 8, 8, 500
"""Prometheus 2.42 sends at most 500 samples a request, from several queues at once, a series always on the same."""
INGEST_SECONDS = 600
SIZE_SECONDS = 3600
NUM_KILLS = 40
QUICK_SECONDS, QUICK_KILLS = 20, 2
_SPED_UP_INTERVAL_SECONDS = 0.02
_DISK_WRITE_BYTES, _NUM_DISK_WRITES = 10_000, 300
_COPY_BYTES = 1 << 28

Trace = tuple[list[Series], NDArray[np.int64], NDArray[np.float64]]


def find_trace(num_seconds: int) -> tuple[Trace, str]:
    """The hour recorded on a real host, or, where it is not there, this host's counters read faster; and which."""
    for folder in os.environ.get("LEPTON_DATA", "").split(os.pathsep):
        path = Path(folder or ".") / "host_metrics" / "hour.npz"
        if path.is_file():
            return _hardest(
                *load(path), num_seconds
            ), "an hour of a real host, recorded at one sample a second"
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "trace.npz"
        record(path, num_seconds, interval_seconds=_SPED_UP_INTERVAL_SECONDS)
        names, times, values = load(path)
    times = times[0] + np.arange(len(times)) * 1000
    return _hardest(names, times, values, num_seconds), "this host's counters, read 50 times as fast as said"


def _hardest(
    names: list[str], times: NDArray[np.int64], values: NDArray[np.float64], num_seconds: int
) -> Trace:
    """Series that change come first, so that the constant ones left out make nothing look smaller."""
    constant = [bool((column == column[0]).all()) for column in values.T]
    order = sorted(range(len(names)), key=lambda at: constant[at])[:NUM_SERIES]
    series = [_series(names[at]) for at in order]
    return series, times[:num_seconds], np.ascontiguousarray(values[:num_seconds, order])


def _series(text: str) -> Series:
    name, _, inside = text.partition("{")
    pairs = (pair.split("=", 1) for pair in inside.rstrip("}").split(",") if pair)
    labels = {key: value.strip('"') for key, value in pairs}
    return Series(tuple(sorted({**labels, NAME_LABEL: name, "instance": "node-17.cluster:9100"}.items())))


def _renamed(series: Series, host: int) -> Series:
    return Series.of(series.name, **{**dict(series.labels[1:]), "instance": f"node-{host}.cluster:9100"})


def requests(trace: Trace) -> list[list[bytes]]:
    """Remote-write bodies of many hosts with these samples, for each sender in the order in which it sends."""
    series, times, values = trace
    owners = [_renamed(each, host) for host in range(NUM_HOSTS) for each in series]
    columns = np.tile(values, (1, NUM_HOSTS))
    queues: list[list[bytes]] = []
    for sender in range(NUM_SENDERS):
        own = range(sender, len(owners), NUM_SENDERS)
        pending = [
            (owners[at], [(int(times[tick]), float(columns[tick, at]))])
            for tick in range(len(times))
            for at in own
        ]
        cuts = range(0, len(pending), SAMPLES_PER_REQUEST)
        queues.append([encode_write_request(pending[low : low + SAMPLES_PER_REQUEST]) for low in cuts])
    return queues


def ingest(num_seconds: int) -> Mapping[str, float]:
    """Everything from the compressed body to the disk, by several senders, on one core."""
    trace, _ = find_trace(num_seconds)
    queues = requests(trace)
    num_samples = len(trace[1]) * len(trace[0]) * NUM_HOSTS
    clock = FakeClock(start_seconds=float(trace[1][-1]) / 1000)
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with (
        tempfile.TemporaryDirectory() as folder,
        MetricsStore.open(Path(folder) / "store", clock=clock) as store,
    ):
        intake = Intake(store, limits=IngestLimits(), clock=clock)
        taken: list[int] = []

        def send(bodies: Sequence[bytes]) -> None:
            taken.append(sum(receive(intake, "bench", body).num_accepted for body in bodies))

        senders = [threading.Thread(target=send, args=(bodies,)) for bodies in queues]
        began, began_cpu = time.perf_counter(), time.process_time()
        for each in senders:
            each.start()
        for each in senders:
            each.join()
        seconds, cpu = time.perf_counter() - began, time.process_time() - began_cpu
        if sum(taken) != num_samples:
            raise SystemExit(f"{num_samples} samples sent, {sum(taken)} accepted")
        began = time.perf_counter()
        store.maintain(clock.now_seconds(), flush=True)
        cut_seconds = time.perf_counter() - began
    return {
        "samples": num_samples, "seconds": seconds, "cpu_seconds": cpu, "cut_seconds": cut_seconds,
        "requests": sum(len(bodies) for bodies in queues), **limits(),
    }  # fmt: skip


def limits() -> Mapping[str, float]:
    """What the machine can do: writes forced to the disk a second, one at a time; bytes copied in memory a second."""
    with tempfile.NamedTemporaryFile() as file:
        began = time.perf_counter()
        for _ in range(_NUM_DISK_WRITES):
            os.write(file.fileno(), bytes(_DISK_WRITE_BYTES))
            os.fdatasync(file.fileno())
        forced = _NUM_DISK_WRITES / (time.perf_counter() - began)
    source, target = np.ones(_COPY_BYTES // 8), np.ones(_COPY_BYTES // 8)
    began = time.perf_counter()
    np.copyto(target, source)
    return {
        "forced_per_second": forced,
        "copied_gb_per_second": _COPY_BYTES / (time.perf_counter() - began) / 1e9,
    }


def _filled(folder: Path, trace: Trace) -> MetricsStore:
    """A store with the trace, appended tick by tick as an agent does, and put into chunks."""
    series, times, values = trace
    store = MetricsStore.open(folder, clock=FakeClock(start_seconds=float(times[-1]) / 1000))
    ids = np.array([store.series_id(each) for each in series])
    for tick, at_ms in enumerate(times.tolist()):
        store.append(ids, np.full(len(ids), at_ms), values[tick])
        if tick % 60 == 0:
            store.maintain(at_ms / 1000)
    return store


def size(num_seconds: int) -> tuple[Mapping[str, float], str]:
    """What an hour takes on the disk: every file of the directory, all tiers and indexes."""
    trace, which = find_trace(num_seconds)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "store"
        with _filled(folder, trace) as store:
            before = sum(path.stat().st_size for path in folder.iterdir())
            store.maintain(float(trace[1][-1]) / 1000, flush=True)
        files = {path.name: path.stat().st_size for path in folder.iterdir()}
    num_samples = trace[2].size
    constant = sum(bool((column == column[0]).all()) for column in trace[2].T)
    raw = sum(length for name, length in files.items() if not name.startswith(("minute", "hour")))
    numbers = {
        "bytes_per_sample": sum(files.values()) / num_samples, "raw_bytes_per_sample": raw / num_samples,
        "waiting_bytes_per_sample": before / num_samples, "series": len(trace[0]), "constant": constant,
    }  # fmt: skip
    return numbers, f"{which}; {constant} of {len(trace[0])} series did not change in it"


def query(num_seconds: int) -> Mapping[str, float]:
    """How fast samples and a downsampled view of all series are read from chunks."""
    trace, _ = find_trace(num_seconds)
    start, end = int(trace[1][0]), int(trace[1][-1])
    numbers: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch, _filled(Path(scratch) / "store", trace) as store:
        store.maintain(end / 1000, flush=True)
        for name, step in (("raw", None), ("ten_seconds", 10_000), ("minute", 60_000)):
            began = time.perf_counter()
            rows = sum(len(each.values) for each in store.select([], start, end, step_ms=step))
            numbers[f"{name}_seconds"], numbers[f"{name}_rows"] = time.perf_counter() - began, rows
        began = time.perf_counter()
        matchers = [Matcher("__name__", "=~", "node_cpu.*"), Matcher("mode", "!=", "idle")]
        list(store.select(matchers, start, end, step_ms=60_000))
        numbers["panel_milliseconds"] = (time.perf_counter() - began) * 1000
    return numbers


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--what", choices=("ingest", "size", "kill", "query"), required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    words = parser.parse_args()
    note = ""
    numbers: Mapping[str, float]
    if words.what == "ingest":
        numbers = ingest(QUICK_SECONDS if words.quick else INGEST_SECONDS)
    elif words.what == "size":
        numbers, note = size(QUICK_SECONDS if words.quick else SIZE_SECONDS)
    elif words.what == "query":
        numbers = query(QUICK_SECONDS if words.quick else SIZE_SECONDS)
    else:
        numbers = kill_and_compare(QUICK_KILLS if words.quick else NUM_KILLS, seed=words.seed)
    words.report.write_text(json.dumps({"numbers": numbers, "note": note}))


if __name__ == "__main__":
    main()
