"""Temperatures, fans, voltages and power: hwmon chips and thermal zones."""

from __future__ import annotations

import re
from pathlib import Path

from leptonai.operations.agent.source import Absent, KeptFile, Place, Reading, Source, read_word

_SENSOR_SECONDS = 5.0  # heat moves in seconds, and reading some chips takes milliseconds on a slow bus
_MILLI = 1e-3
_MICRO = 1e-6
_KINDS: tuple[tuple[str, str, float], ...] = (
    # file of a chip, metric, factor to its unit (kernel's Documentation/hwmon/sysfs-interface)
    (r"temp\d+_input", "node_hwmon_temp_celsius", _MILLI),
    (r"temp\d+_crit", "node_hwmon_temp_crit_celsius", _MILLI),
    (r"fan\d+_input", "node_hwmon_fan_rpm", 1.0),
    (r"power\d+_average", "node_hwmon_power_average_watt", _MICRO),
    (r"power\d+_input", "node_hwmon_power_average_watt", _MICRO),
    (r"in\d+_input", "node_hwmon_in_volts", _MILLI),
)


def sensor_of(file: str) -> tuple[str, str, float] | None:
    """The sensor, metric and factor of a chip's file; None: the file is none of those kept.

    >>> sensor_of("temp1_input"), sensor_of("name")
    (('temp1', 'node_hwmon_temp_celsius', 0.001), None)
    """
    for pattern, metric, factor in _KINDS:
        if re.fullmatch(pattern, file):
            return file.partition("_")[0], metric, factor
    return None


class FilesSource:
    """Small files that each hold one number; those that fail (a sleeping device) are left out that time."""

    def __init__(self, name: str, files: list[tuple[int, KeptFile, float]]) -> None:
        self.name = name
        self.interval_seconds = _SENSOR_SECONDS
        self._files = files

    def read(self, out: list[Reading]) -> None:
        for key, file, factor in self._files:
            try:
                out.append((key, float(file.read()) * factor))
            except (OSError, ValueError):
                continue

    def close(self) -> None:
        for _, file, _ in self._files:
            file.close()


def open_hwmon(place: Place) -> Source | Absent:
    """The chips that measure."""
    files: list[tuple[int, KeptFile, float]] = []
    for folder in sorted((place.sys / "class/hwmon").glob("hwmon*")):
        chip = read_word(folder / "name") or folder.name
        device = (folder / "device").resolve().name if (folder / "device").exists() else folder.name
        for path in sorted(folder.iterdir()):
            sensor = sensor_of(path.name)
            if sensor is None:
                continue
            label = read_word(folder / f"{sensor[0]}_label")
            key = place.table.key(sensor[1], chip=chip, device=device, sensor=sensor[0], label=label)
            _append(files, key, path, sensor[2])
    return FilesSource("hwmon", files) if files else Absent("hwmon", "no chip measures (/sys/class/hwmon)")


def open_thermal(place: Place) -> Source | Absent:
    """The thermal zones."""
    files: list[tuple[int, KeptFile, float]] = []
    for folder in sorted((place.sys / "class/thermal").glob("thermal_zone*")):
        zone = folder.name.removeprefix("thermal_zone")
        key = place.table.key("node_thermal_zone_temp", zone=zone, type=read_word(folder / "type"))
        _append(files, key, folder / "temp", _MILLI)
    return FilesSource("thermal", files) if files else Absent("thermal", "no zone (/sys/class/thermal)")


def _append(files: list[tuple[int, KeptFile, float]], key: int, path: Path, factor: float) -> None:
    try:
        files.append((key, KeptFile(path), factor))
    except OSError:
        return  # a sensor this user may not read
