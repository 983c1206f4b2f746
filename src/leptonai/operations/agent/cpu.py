"""Processors: time per mode, load, and the pressure that waiting tasks put on processor, memory and disks."""

from __future__ import annotations

import os
from collections.abc import Mapping

from leptonai.operations.agent.source import Absent, KeptFile, Place, Reading, Source

MODES = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
"""The columns of a cpu line of ``/proc/stat``, in order; guest time is counted in user time already."""
_TICKS_PER_SECOND = float(os.sysconf("SC_CLK_TCK"))
_MICROSECONDS_PER_SECOND = 1e6
_STAT_NAMES: Mapping[str, str] = {
    "ctxt": "node_context_switches_total",
    "processes": "node_forks_total",
    "procs_running": "node_procs_running",
    "procs_blocked": "node_procs_blocked",
    "btime": "node_boot_time_seconds",
    "intr": "node_intr_total",
}
_PRESSURE: Mapping[tuple[str, str], str] = {
    ("cpu", "some"): "node_pressure_cpu_waiting_seconds_total",
    ("io", "some"): "node_pressure_io_waiting_seconds_total",
    ("io", "full"): "node_pressure_io_stalled_seconds_total",
    ("memory", "some"): "node_pressure_memory_waiting_seconds_total",
    ("memory", "full"): "node_pressure_memory_stalled_seconds_total",
}


def parse_stat(text: str, *, per_core: bool) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds per mode of each processor (``all`` where not per core), and the single numbers by metric name.

    >>> cores, rest = parse_stat("cpu  100 0 50 800 0 0 0 0 0 0\\nctxt 7\\n", per_core=False)
    >>> cores["all"][:4], rest
    ([1.0, 0.0, 0.5, 8.0], {'node_context_switches_total': 7.0})
    """
    cores: dict[str, list[float]] = {}
    rest: dict[str, float] = {}
    for line in text.splitlines():
        word, _, tail = line.partition(" ")
        if word.startswith("cpu"):
            core = word[3:]
            if bool(core) == per_core:
                ticks = tail.split()[: len(MODES)]
                cores[core or "all"] = [int(each) / _TICKS_PER_SECOND for each in ticks]
        elif (name := _STAT_NAMES.get(word)) is not None:
            rest[name] = float(tail.split(" ", 1)[0])
    return cores, rest


def parse_loadavg(text: str) -> tuple[float, float, float]:
    """The load over 1, 5 and 15 minutes.

    >>> parse_loadavg("0.52 0.58 0.59 2/1234 5678\\n")
    (0.52, 0.58, 0.59)
    """
    one, five, fifteen = text.split()[:3]
    return float(one), float(five), float(fifteen)


def parse_pressure(text: str) -> dict[str, float]:
    """Seconds of pressure so far: ``some`` task waited, ``full``: all did.

    >>> parse_pressure("some avg10=0.00 avg60=0.00 avg300=0.00 total=1500000\\n")
    {'some': 1.5}
    """
    found = {}
    for line in text.splitlines():
        word, _, tail = line.partition(" ")
        total = tail.rpartition("total=")[2]
        if total:
            found[word] = int(total) / _MICROSECONDS_PER_SECOND
    return found


class CpuSource:
    """Reads ``/proc/stat`` and ``/proc/loadavg``."""

    name = "cpu"
    interval_seconds = 0.0

    def __init__(self, place: Place) -> None:
        self._table = place.table
        self._per_core = place.per_core
        self._stat = KeptFile(place.proc / "stat")
        self._load = KeptFile(place.proc / "loadavg")
        self._loads = [place.table.key(f"node_load{minutes}") for minutes in (1, 5, 15)]
        self._rest = {name: place.table.key(name) for name in _STAT_NAMES.values()}
        self._cores: dict[str, list[int]] = {}

    def read(self, out: list[Reading]) -> None:
        cores, rest = parse_stat(self._stat.read(), per_core=self._per_core)
        for core, seconds in cores.items():
            keys = self._cores.get(core)
            if keys is None:
                keys = self._cores[core] = [
                    self._table.key("node_cpu_seconds_total", cpu=core, mode=mode) for mode in MODES
                ]
            out.extend(zip(keys, seconds, strict=False))
        out.extend((self._rest[name], value) for name, value in rest.items())
        out.extend(zip(self._loads, parse_loadavg(self._load.read()), strict=True))

    def close(self) -> None:
        self._stat.close()
        self._load.close()


class PressureSource:
    """Reads ``/proc/pressure``."""

    name = "pressure"
    interval_seconds = 0.0

    def __init__(self, place: Place) -> None:
        self._files = {kind: KeptFile(place.proc / "pressure" / kind) for kind in ("cpu", "io", "memory")}
        self._keys = {pair: place.table.key(name) for pair, name in _PRESSURE.items()}

    def read(self, out: list[Reading]) -> None:
        for kind, file in self._files.items():
            for word, seconds in parse_pressure(file.read()).items():
                if (key := self._keys.get((kind, word))) is not None:
                    out.append((key, seconds))

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def open_cpu(place: Place) -> Source | Absent:
    """The processors."""
    try:
        return CpuSource(place)
    except OSError as error:
        return Absent("cpu", f"/proc/stat: {error.strerror}")


def open_pressure(place: Place) -> Source | Absent:
    """Pressure, where the kernel counts it."""
    try:
        source = PressureSource(place)
        source.read([])  # opens fine but does not read where the kernel was started with psi=0
    except OSError as error:
        return Absent("pressure", f"the kernel does not count it (CONFIG_PSI, psi=1): {error.strerror}")
    return source
