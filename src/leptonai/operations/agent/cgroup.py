"""The control group this process lives in: its limits, use, throttling and kills (version 2)."""

from __future__ import annotations

from pathlib import Path

from leptonai.operations.agent.source import Absent, KeptFile, Place, Reading, Source

_MICROSECONDS_PER_SECOND = 1e6
_CGROUP_SECONDS = 1.0


def parse_cgroup(text: str) -> str:
    """The path of the version 2 group in ``/proc/self/cgroup``; empty: there is none.

    >>> parse_cgroup("0::/system.slice/lepton.service\\n")
    '/system.slice/lepton.service'
    """
    return next((line[3:] for line in text.splitlines() if line.startswith("0::")), "")


def parse_pairs(text: str) -> dict[str, float]:
    """Lines of a name and a number.

    >>> parse_pairs("oom 1\\noom_kill 2\\n")
    {'oom': 1.0, 'oom_kill': 2.0}
    """
    return {name: float(value) for name, _, value in (line.partition(" ") for line in text.splitlines())}


def parse_cpu_max(text: str) -> float | None:
    """The most cores: quota over period; None: no limit.

    >>> parse_cpu_max("150000 100000\\n"), parse_cpu_max("max 100000\\n")
    (1.5, None)
    """
    quota, period = text.split()
    return None if quota == "max" else float(quota) / float(period)


class CgroupSource:
    """Reads the files of one group; limits are read with the rest, as they may be changed."""

    name = "cgroup"
    interval_seconds = _CGROUP_SECONDS

    def __init__(self, place: Place, folder: Path) -> None:
        wanted = ("memory.current", "memory.max", "memory.events", "cpu.max", "cpu.stat", "pids.current")
        self._files = {name: KeptFile(folder / name) for name in wanted if (folder / name).exists()}
        names = [
            "memory_bytes", "memory_limit_bytes", "cpu_limit_cores", "pids", "oom_kills_total",
            "cpu_throttled_seconds_total", "cpu_seconds_total",
        ]  # fmt: skip
        self._keys = {name: place.table.key(f"lepton_cgroup_{name}") for name in names}

    def read(self, out: list[Reading]) -> None:
        for file, kept in self._files.items():
            for name, value in cgroup_values(file, kept.read()).items():
                out.append((self._keys[name], value))

    def close(self) -> None:
        for file in self._files.values():
            file.close()


def cgroup_values(file: str, text: str) -> dict[str, float]:
    """What one file of a group says, by metric without its prefix; limits that are not set are left out.

    >>> cgroup_values("memory.max", "max\\n"), cgroup_values("memory.current", "4096\\n")
    ({}, {'memory_bytes': 4096.0})
    """
    if file == "cpu.max":
        cores = parse_cpu_max(text)
        return {} if cores is None else {"cpu_limit_cores": cores}
    if file == "memory.events":
        return {"oom_kills_total": parse_pairs(text).get("oom_kill", 0.0)}
    if file == "cpu.stat":
        pairs = parse_pairs(text)
        found = {"cpu_seconds_total": pairs.get("usage_usec", 0.0) / _MICROSECONDS_PER_SECOND}
        if "throttled_usec" in pairs:
            found["cpu_throttled_seconds_total"] = pairs["throttled_usec"] / _MICROSECONDS_PER_SECOND
        return found
    names = {"memory.current": "memory_bytes", "memory.max": "memory_limit_bytes", "pids.current": "pids"}
    word = text.strip()
    return {} if word == "max" else {names[file]: float(word)}


def open_cgroup(place: Place) -> Source | Absent:
    """The group, where control groups version 2 are mounted and limit something."""
    try:
        path = parse_cgroup((place.proc / "self/cgroup").read_text(encoding="utf-8"))
        folder = place.sys / "fs/cgroup" / path.lstrip("/")
        if not folder.is_dir():  # inside a container the path may be the host's
            folder = place.sys / "fs/cgroup"
        source = CgroupSource(place, folder)
    except OSError as error:
        return Absent("cgroup", f"cannot be read: {error.strerror}")
    if not source._files:
        return Absent("cgroup", "no version 2 group with limits")
    return source
