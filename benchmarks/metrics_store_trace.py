"""A recorded hour of a real host, one sample a second: what the bytes per sample are measured on.

``python -m benchmarks.metrics_store_trace --out FILE.npz --seconds 3600`` records one: counters and gauges of
``/proc`` as the agent names and scales them, and a small training in this process (four ranks' logistic regression
in NumPy) for the series of a run, whose values use all bits of a float. Nothing is sped up or made up.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SAVE_EVERY = 300
"""Ticks between two times the trace is saved, so that a run cut short leaves what it has."""
_TICKS = float(os.sysconf("SC_CLK_TCK"))
_SECTOR_BYTES = 512.0
_CPU_MODES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
_DISK = (
    ("reads_completed_total", 1.0), ("reads_merged_total", 1.0), ("read_bytes_total", _SECTOR_BYTES),
    ("read_time_seconds_total", 1e3), ("writes_completed_total", 1.0), ("writes_merged_total", 1.0),
    ("written_bytes_total", _SECTOR_BYTES), ("write_time_seconds_total", 1e3), ("io_now", 1.0),
    ("io_time_seconds_total", 1e3), ("io_time_weighted_seconds_total", 1e3),
)  # fmt: skip
_NETWORK = ("bytes", "packets", "errs", "drop")

Reading = Iterator[tuple[str, float]]


def read_host() -> Reading:
    """Every series there is, as ``name{labels}`` and its value now."""
    yield from _cpu()
    yield from _disks()
    yield from _network()
    yield from _netstat()
    yield from _pressure()
    for line in Path("/proc/meminfo").read_text().splitlines():
        words = line.split()
        key = words[0].rstrip(":").replace("(", "_").replace(")", "")
        yield f"node_memory_{key}_bytes", float(words[1]) * (1024.0 if len(words) > 2 else 1.0)
    for line in Path("/proc/vmstat").read_text().splitlines():
        key, number = line.split()
        yield f"node_vmstat_{key}", float(number)
    for minutes, word in zip((1, 5, 15), Path("/proc/loadavg").read_text().split(), strict=False):
        yield f"node_load{minutes}", float(word)


def _cpu() -> Reading:
    for line in Path("/proc/stat").read_text().splitlines():
        words = line.split()
        if words[0].startswith("cpu") and words[0] != "cpu":
            for mode, ticks in zip(_CPU_MODES, words[1:], strict=False):
                yield f'node_cpu_seconds_total{{cpu="{words[0][3:]}",mode="{mode}"}}', float(ticks) / _TICKS
        elif words[0] in ("ctxt", "processes", "procs_running", "procs_blocked"):
            yield f"node_{words[0]}", float(words[1])
        elif words[0] in ("intr", "softirq"):
            yield f"node_{words[0]}_total", float(words[1])


def _disks() -> Reading:
    for line in Path("/proc/diskstats").read_text().splitlines():
        words = line.split()
        if words[2].startswith(("loop", "ram", "zram")):
            continue
        for (name, scale), number in zip(_DISK, words[3:], strict=False):
            value = float(number) / scale if scale == 1e3 else float(number) * scale
            yield f'node_disk_{name}{{device="{words[2]}"}}', value


def _network() -> Reading:
    for line in Path("/proc/net/dev").read_text().splitlines()[2:]:
        device, _, rest = line.partition(":")
        words = rest.split()
        for way, first in (("receive", 0), ("transmit", 8)):
            for offset, key in enumerate(_NETWORK):
                name = f'node_network_{way}_{key}_total{{device="{device.strip()}"}}'
                yield name, float(words[first + offset])


def _netstat() -> Reading:
    lines = Path("/proc/net/snmp").read_text().splitlines()
    for heads, numbers in zip(lines[::2], lines[1::2], strict=True):
        protocol = heads.split(":")[0]
        if protocol in ("Tcp", "Udp"):
            for key, number in zip(heads.split()[1:], numbers.split()[1:], strict=True):
                yield f"node_netstat_{protocol}_{key}", float(number)


def _pressure() -> Reading:
    for resource in ("cpu", "io", "memory"):
        for line in Path(f"/proc/pressure/{resource}").read_text().splitlines():
            words = dict(word.split("=") for word in line.split()[1:])
            name = f"node_pressure_{resource}_{line.split()[0]}_seconds_total"
            yield name, float(words["total"]) / 1e6


class Training:
    """Four ranks' logistic regression on fresh data each step; small enough to go unnoticed."""

    num_ranks = 4
    num_features = 64
    num_rows = 256

    def __init__(self, seed: int = 1) -> None:
        self._random = np.random.default_rng(seed)
        self._truth = self._random.normal(size=self.num_features)
        self._weights = np.zeros(self.num_features)
        self._step = 0

    def step(self) -> Reading:
        """One step of all ranks: what each would report."""
        began = time.perf_counter()
        gradients, losses, seconds = [], [], []
        for _ in range(self.num_ranks):
            started = time.perf_counter()
            rows = self._random.normal(size=(self.num_rows, self.num_features))
            answers = self._random.random(self.num_rows) < 1 / (1 + np.exp(-rows @ self._truth))
            guesses = 1 / (1 + np.exp(-rows @ self._weights))
            losses.append(float(-np.mean(np.log(np.where(answers, guesses, 1 - guesses) + 1e-12))))
            gradients.append(rows.T @ (guesses - answers) / self.num_rows)
            seconds.append(time.perf_counter() - started)
        gradient = np.mean(gradients, axis=0)
        self._weights -= 0.05 * gradient
        self._step += 1
        whole = time.perf_counter() - began
        for rank in range(self.num_ranks):
            labels = f'{{rank="{rank}",run="demo"}}'
            yield f"lepton_rank_step{labels}", float(self._step)
            yield f"lepton_rank_step_seconds{labels}", whole
            yield f"lepton_rank_compute_seconds{labels}", seconds[rank]
            yield f"lepton_rank_exchange_seconds{labels}", whole - seconds[rank]
        yield 'lepton_run_loss{run="demo"}', float(np.mean(losses))
        yield 'lepton_run_gradient_norm{run="demo"}', float(np.linalg.norm(gradient))
        yield 'lepton_run_learning_rate{run="demo"}', 0.05
        yield 'lepton_run_examples_per_second{run="demo"}', self.num_ranks * self.num_rows / whole


def record(out: Path, num_ticks: int, *, interval_seconds: float = 1.0) -> None:
    """Record every series once in an interval; save now and then, and at the end."""
    training = Training()
    names = [name for name, _ in read_host()] + [name for name, _ in training.step()]
    values: NDArray[np.float64] = np.full((num_ticks, len(names)), np.nan)
    times: NDArray[np.int64] = np.zeros(num_ticks, np.int64)
    next_at = time.monotonic()
    for tick in range(num_ticks):
        next_at += interval_seconds
        time.sleep(max(0.0, next_at - time.monotonic()))
        times[tick] = int(time.time() * 1000)
        now = {**dict(read_host()), **dict(training.step())}
        values[tick] = [now.get(name, np.nan) for name in names]
        if (tick + 1) % SAVE_EVERY == 0 or tick + 1 == num_ticks:
            _save(out, names, times[: tick + 1], values[: tick + 1])


def _save(out: Path, names: list[str], times: NDArray[np.int64], values: NDArray[np.float64]) -> None:
    fresh = out.with_suffix(".part.npz")
    np.savez_compressed(fresh, names=np.array(json.dumps(names)), times_ms=times, values=values)
    fresh.replace(out)


def load(path: Path) -> tuple[list[str], NDArray[np.int64], NDArray[np.float64]]:
    """Names, times (ms) and values (times x names) of a recorded trace."""
    with np.load(path, allow_pickle=False) as found:
        loaded: dict[str, Any] = {name: found[name] for name in ("names", "times_ms", "values")}
    return json.loads(str(loaded["names"])), loaded["times_ms"], loaded["values"]


def main() -> int:
    """Record with the words of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.metrics_store_trace")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=int, default=3600)
    words = parser.parse_args()
    record(words.out, words.seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main())
