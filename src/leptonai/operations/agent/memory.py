"""Memory and swap: what is used, what is moved to disk and back, who was killed, errors that the hardware saw."""

from __future__ import annotations

from pathlib import Path

from leptonai.operations.agent.catalogue import MEMINFO_KEYS
from leptonai.operations.agent.source import Absent, KeptFile, Place, Reading, Source

_BYTES_PER_KIB = 1024
VMSTAT_KEYS = ("pswpin", "pswpout", "pgmajfault", "oom_kill")
_EDAC = {"ce_count": "node_edac_correctable_errors_total", "ue_count": "node_edac_uncorrectable_errors_total"}
_EDAC_SECONDS = 10.0  # the drivers themselves poll the hardware every second at most; errors are rare


def parse_meminfo(text: str) -> dict[str, float]:
    """Bytes by name.

    >>> parse_meminfo("MemTotal:       16384 kB\\nHugePages_Total:       3\\n")
    {'MemTotal': 16777216.0, 'HugePages_Total': 3.0}
    """
    found = {}
    for line in text.splitlines():
        name, _, tail = line.partition(":")
        words = tail.split()
        if words:
            found[name] = float(words[0]) * (_BYTES_PER_KIB if words[-1] == "kB" else 1)
    return found


def parse_vmstat(text: str) -> dict[str, float]:
    """The counters kept of ``/proc/vmstat``.

    >>> parse_vmstat("nr_free_pages 12\\noom_kill 2\\n")
    {'oom_kill': 2.0}
    """
    found = {}
    for key in VMSTAT_KEYS:  # looking for four words beats splitting 180 lines
        at = text.find(f"\n{key} ")
        if at >= 0:
            start = at + len(key) + 2
            found[key] = float(text[start : text.find("\n", start)])
    return found


class MemorySource:
    """Reads ``/proc/meminfo`` and ``/proc/vmstat``."""

    name = "memory"
    interval_seconds = 0.0

    def __init__(self, place: Place) -> None:
        self._meminfo = KeptFile(place.proc / "meminfo")
        self._vmstat = KeptFile(place.proc / "vmstat")
        self._keys = {key: place.table.key(f"node_memory_{key}_bytes") for key in MEMINFO_KEYS}
        self._events = {key: place.table.key(f"node_vmstat_{key}") for key in VMSTAT_KEYS}

    def read(self, out: list[Reading]) -> None:
        for name, size_bytes in parse_meminfo(self._meminfo.read()).items():
            if (key := self._keys.get(name)) is not None:
                out.append((key, size_bytes))
        for name, count in parse_vmstat(self._vmstat.read()).items():
            out.append((self._events[name], count))

    def close(self) -> None:
        self._meminfo.close()
        self._vmstat.close()


class EdacSource:
    """Reads the error counts of the memory controllers."""

    name = "edac"
    interval_seconds = _EDAC_SECONDS

    def __init__(self, place: Place, controllers: list[Path]) -> None:
        self._files = [
            (place.table.key(metric, controller=folder.name[2:]), KeptFile(folder / file))
            for folder in controllers
            for file, metric in _EDAC.items()
        ]

    def read(self, out: list[Reading]) -> None:
        out.extend((key, float(file.read())) for key, file in self._files)

    def close(self) -> None:
        for _, file in self._files:
            file.close()


def open_memory(place: Place) -> Source | Absent:
    """Memory and swap."""
    try:
        return MemorySource(place)
    except OSError as error:
        return Absent("memory", f"/proc/meminfo: {error.strerror}")


def open_edac(place: Place) -> Source | Absent:
    """Memory errors, where a driver watches the controllers."""
    controllers = sorted((place.sys / "devices/system/edac/mc").glob("mc[0-9]*"))
    if not controllers:
        return Absent("edac", "no memory controller reports errors (no EDAC driver)")
    try:
        return EdacSource(place, controllers)
    except OSError as error:
        return Absent("edac", f"cannot be read: {error.strerror}")
