"""What disks say of their own health: SMART through smartctl where it is installed, else what the kernel knows.

smartctl can take seconds (it waits for the disk), so it runs beside the agent and is looked at later; a sleeping disk
is left asleep.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from leptonai.core.clock import Clock, SystemClock
from leptonai.operations.agent.source import Absent, Place, Reading, Source, read_word

SMART_SECONDS = 600.0  # smartd's own habit is half an hour; attributes move over days
_LIMIT_SECONDS = 60.0  # a disk that takes longer does not answer at all
_SECONDS_PER_HOUR = 3600.0
_MAX_BYTES = 4 << 20  # the longest true reports are some 100 KB
_WATCHED = {1, 5, 10, 184, 187, 188, 194, 196, 197, 198, 199, 231, 233}
"""Attributes of ATA disks that published failure studies use (Backblaze; Pinheiro et al. 2007), and wear of SSDs."""
_RUNNING = ("running", "live")
Values = list[tuple[str, dict[str, str], float]]


def parse_smartctl(text: str, disk: str) -> Values:
    """Metrics, labels and values of one report of ``smartctl --json --all``; empty: the text is no report.

    >>> parse_smartctl('{"smart_status": {"passed": true}, "temperature": {"current": 31}}', "sda")
    [('lepton_disk_smart_healthy', {'disk': 'sda'}, 1.0), ('lepton_disk_temperature_celsius', {'disk': 'sda'}, 31.0)]
    """
    try:
        report = json.loads(text)
    except (ValueError, RecursionError):
        return []
    if not isinstance(report, dict):
        return []
    found: Values = []
    labels = {"disk": disk}
    status = _at(report, "smart_status", "passed")
    if isinstance(status, bool):
        found.append(("lepton_disk_smart_healthy", labels, float(status)))
    nvme = report.get("nvme_smart_health_information_log")
    places: tuple[tuple[str, Any, float], ...] = (
        ("lepton_disk_temperature_celsius", _at(report, "temperature", "current"), 1.0),
        ("lepton_disk_power_on_seconds_total", _at(report, "power_on_time", "hours"), _SECONDS_PER_HOUR),
        ("lepton_disk_media_errors_total", _at(nvme, "media_errors"), 1.0),
        ("lepton_disk_critical_warning", _at(nvme, "critical_warning"), 1.0),
        ("lepton_disk_spare_ratio", _at(nvme, "available_spare"), 0.01),
        ("lepton_disk_wear_ratio", _at(nvme, "percentage_used"), 0.01),
    )
    for name, value, factor in places:
        if isinstance(value, int | float) and not isinstance(value, bool):
            found.append((name, labels, value * factor))
    return found + _attributes(report, disk)


def _attributes(report: Mapping[str, Any], disk: str) -> Values:
    found: Values = []
    table = _at(report, "ata_smart_attributes", "table")
    for row in table if isinstance(table, list) else ():
        number, raw = _at(row, "id"), _at(row, "raw", "value")
        if number in _WATCHED and isinstance(raw, int):
            labels = {"disk": disk, "id": str(number), "attribute": str(_at(row, "name"))}
            found.append(("lepton_disk_attribute_raw", labels, float(raw)))
    return found


def _at(values: Any, *path: str) -> Any:
    for name in path:
        values = values.get(name) if isinstance(values, dict) else None
    return values


def kernel_values(block: Path) -> Values:
    """What ``/sys/block/DISK`` says: whether the disk runs, and requests that failed (SCSI only)."""
    labels = {"disk": block.name}
    found: Values = []
    if state := read_word(block / "device/state"):
        found.append(("lepton_disk_state_running", labels, float(state in _RUNNING)))
    if errors := read_word(block / "device/ioerr_cnt"):
        found.append(("lepton_disk_io_errors_total", labels, float(int(errors, 16))))
    return found


class SmartSource:
    """One report after another, and what the kernel knows, all repeated until the next report."""

    name = "smart"
    interval_seconds = 1.0

    def __init__(
        self,
        place: Place,
        disks: list[Path],
        *,
        command: str | None,
        clock: Clock | None = None,
        start: Callable[..., subprocess.Popen[bytes]] = subprocess.Popen,
    ) -> None:
        self._table = place.table
        self._disks = disks
        self._command = command
        self._clock = clock or SystemClock()
        self._start = start
        self._due: list[tuple[float, Path]] = [(float("-inf"), disk) for disk in disks] if command else []
        self._process: subprocess.Popen[bytes] | None = None
        self._current: tuple[float, Path] = (0.0, Path())
        self._output: Any = None
        self._reports: dict[str, list[Reading]] = {}

    def read(self, out: list[Reading]) -> None:
        now = self._clock.monotonic_seconds()
        if self._process is not None:
            self._look(now)
        elif self._due and self._due[0][0] <= now:
            self._begin(now)
        for disk in self._disks:
            out.extend(self._readings(kernel_values(disk)))
        for readings in self._reports.values():
            out.extend(readings)

    def _begin(self, now: float) -> None:
        _, disk = self._due.pop(0)
        self._due.append((now + SMART_SECONDS, disk))
        self._output = tempfile.TemporaryFile()  # noqa: SIM115 (closed when the answer is in)
        self._current = (now, disk)
        self._process = self._start(
            [str(self._command), "--json", "--all", "--nocheck=standby,0", f"/dev/{disk.name}"],
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.DEVNULL,
        )

    def _look(self, now: float) -> None:
        assert self._process is not None
        if self._process.poll() is None:
            if now - self._current[0] > _LIMIT_SECONDS:
                self._stop()
            return
        self._output.seek(0)
        text = self._output.read(_MAX_BYTES).decode("utf-8", "replace")
        disk = self._current[1].name
        values = parse_smartctl(text, disk)
        if values:  # a sleeping disk gives none: what it said last stays
            self._reports[disk] = self._readings(values)
        self._stop()

    def _readings(self, values: Values) -> list[Reading]:
        return [(self._table.key(name, **labels), value) for name, labels, value in values]

    def _stop(self) -> None:
        if self._process is not None:
            process, self._process = self._process, None
            if process.poll() is None:
                process.kill()
            process.wait()
            self._output.close()

    def close(self) -> None:
        self._stop()


def open_smart(place: Place, *, find: Callable[[str], str | None] = shutil.which) -> Source | Absent:
    """The disks' health, from smartctl where there is one."""
    folder = place.sys / "block"
    disks = [
        path
        for path in (sorted(folder.iterdir()) if folder.is_dir() else [])
        if (path / "device").exists() and not path.name.startswith(("sr", "fd", "loop"))
    ]
    if not disks:
        return Absent("smart", "no disk that could be asked (/sys/block)")
    command = find("smartctl")
    if command is None and not any(kernel_values(disk) for disk in disks):
        return Absent("smart", "smartctl is not installed, and the kernel tells nothing")
    return SmartSource(place, disks, command=command)
