"""One run of ``agent_cost``: a collector and an agent as processes of their own, and what the agent took.

``python -m benchmarks.agent_cost_runs --report FILE [--quick]``
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from leptonai.core.clock import SystemClock
from leptonai.operations.agent.opened import Sources
from leptonai.operations.agent.source import Place, SeriesTable
from leptonai.operations.ingest.access import Access
from leptonai.operations.ingest.intake import Intake
from leptonai.operations.ingest.limits import IngestLimits
from leptonai.operations.ingest.server import IngestServer, make_app
from leptonai.operations.store import MetricsStore

NUM_SERIES = 300
NODE, TOKEN = "measured", "of-this-run-only"
_CPU_CLOCK_OF_PROCESS = 2  # CPUCLOCK_SCHED of the kernel's include/linux/posix-timers.h
_LONGEST_START_SECONDS = 30.0


@dataclass(frozen=True, slots=True)
class Spans:
    """Seconds of warm-up and of each window, and how many windows."""

    warm_up_seconds: float
    window_seconds: float
    num_windows: int


FULL = Spans(10.0, 15.0, 5)
QUICK = Spans(2.0, 2.0, 2)


def cpu_seconds(pid: int) -> float:
    """Processor time that all threads of a process have taken, to the nanosecond (clock_getcpuclockid(3))."""
    return time.clock_gettime(~pid << 3 | _CPU_CLOCK_OF_PROCESS)


def peak_bytes(pid: int) -> int:
    """The largest resident memory a process ever had."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"process {pid} has no VmHWM")


def series_each_second() -> tuple[int, list[str]]:
    """How many series this node's own sources give each second, and the names of the sources."""
    sources = Sources(Place(table=SeriesTable()), kernel_log=None)
    try:
        sources.read(0.0, interval_seconds=1.0)
        again = sources.read(1.0, interval_seconds=1.0)
        return sum(map(len, again.values())), sources.present()
    finally:
        sources.close()


def collect(folder: Path) -> None:
    """Be the collector until SIGTERM, then tell what arrived: number of samples, first and last second by series."""
    stop = {"wanted": False}
    signal.signal(signal.SIGTERM, lambda *_: stop.update(wanted=True))
    access, clock = Access(read_token=TOKEN, write_token=TOKEN), SystemClock()
    with MetricsStore.open(folder / "store", clock=clock) as store:
        app = make_app(Intake(store, limits=IngestLimits(), clock=clock), access=access)
        with IngestServer(app, access=access) as server:
            (folder / "url.new").write_text(server.url)
            (folder / "url.new").replace(folder / "url")
            while not stop["wanted"]:
                time.sleep(0.1)
        times = {repr(each.series): each.times_ms.tolist() for each in store.select([], 0, 1 << 60)}
    (folder / "times.json").write_text(json.dumps(times))


def arrived_ratio(
    times_ms: dict[str, list[int]], start_seconds: float, end_seconds: float, due: int
) -> float:
    """Of the samples due in a time, one a second of each of ``due`` series, the part that arrived.

    Only as many series as are due count, those with the most samples, each with at most one sample a second.

    >>> arrived_ratio({"a": [1000, 2000, 3000], "b": [1000, 3000], "c": [1000]}, 0.5, 3.5, 2)
    0.8333333333333334
    """
    seconds = round(end_seconds - start_seconds)
    counts = sorted(
        (
            sum(start_seconds * 1000 <= each < end_seconds * 1000 for each in times)
            for times in times_ms.values()
        ),
        reverse=True,
    )
    return sum(min(count, seconds) for count in counts[:due]) / (seconds * due)


def measure(folder: Path, spans: Spans) -> dict[str, Any]:
    """Start both, let them work, and read what the agent took."""
    own, present = series_each_second()
    num_gauges = max(0, NUM_SERIES - own)
    (folder / "token").write_text(f"{TOKEN}\n")
    with process("benchmarks.agent_cost_runs", "--collect", str(folder)) as collector:
        url = wait_for(folder / "url", collector)
        words = [str(num_gauges), "--collector", url, "--token-file", str(folder / "token"), "--node", NODE]
        with process("benchmarks.agent_cost_agent", *words, "--spool", str(folder / "spool")) as agent:
            time.sleep(spans.warm_up_seconds)
            start_cpu_seconds, start_seconds = cpu_seconds(agent.pid), time.time()
            shares = [window(agent.pid, spans.window_seconds) for _ in range(spans.num_windows)]
            end_seconds, peak = time.time(), peak_bytes(agent.pid)
            stop(agent)
        stop(collector)
    times: dict[str, list[int]] = json.loads((folder / "times.json").read_text())
    due = own + num_gauges
    return {
        "core_share": median(shares),
        "highest_core_share": max(shares),
        "peak_mb": peak / 1e6,
        "start_cpu_seconds": start_cpu_seconds,
        "arrived_ratio": arrived_ratio(times, start_seconds, end_seconds, due),
        "series_each_second": due,
        "bytes_per_sample": packed_bytes_per_sample(folder / "spool"),
        "notes": [
            f"sources read: {', '.join(present)}; {own} of their series each second, {num_gauges} gauges"
        ],
    }


def window(pid: int, seconds: float) -> float:
    """The share of one core that a process takes over some seconds."""
    cpu, wall = cpu_seconds(pid), time.monotonic()
    time.sleep(seconds)
    return (cpu_seconds(pid) - cpu) / (time.monotonic() - wall)


def packed_bytes_per_sample(spool: Path) -> float:
    """Of what was written to the spool."""
    from leptonai.operations.agent.spool import parcels

    found = [each for path in sorted(spool.glob("*.spool")) for each in parcels(path.read_bytes())]
    of_samples = [each for each in found if each.kind == "samples"]
    return sum(len(each.body) for each in of_samples) / max(1, sum(each.num_items for each in of_samples))


@contextlib.contextmanager
def process(module: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    """A module as a process; killed if it still runs at the end."""
    with subprocess.Popen([sys.executable, "-m", module, *words], stderr=subprocess.DEVNULL) as running:
        try:
            yield running
        finally:
            if running.poll() is None:
                running.kill()


def stop(running: subprocess.Popen[bytes]) -> None:
    """End a process in peace.

    Raises:
        OSError: it had failed.
    """
    running.terminate()
    if running.wait(30.0) != 0:
        raise OSError(f"a process ended with {running.returncode}")


def wait_for(path: Path, running: subprocess.Popen[bytes]) -> str:
    """The text of a file, once it is there."""
    end = time.monotonic() + _LONGEST_START_SECONDS
    while not path.exists():
        if time.monotonic() > end or running.poll() is not None:
            raise OSError("the collector did not start")
        time.sleep(0.05)
    return path.read_text()


def main() -> None:
    """Do one run and write its report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--report", type=Path)
    parser.add_argument("--collect", type=Path)
    parser.add_argument("--quick", action="store_true")
    words = parser.parse_args()
    if words.collect is not None:
        collect(words.collect)
        return
    with tempfile.TemporaryDirectory(prefix="agent-cost-") as folder:
        report = measure(Path(folder), QUICK if words.quick else FULL)
    words.report.write_text(json.dumps(report))


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
