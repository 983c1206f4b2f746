"""AMD devices: through the library amdsmi where it is installed, else what the kernel's driver shows.

Heat and power come from the sensors (:mod:`~leptonai.operations.agent.sensors`) in either case.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from leptonai.operations.agent.source import (
    Absent,
    Place,
    Reading,
    SeriesTable,
    Source,
    read_number,
    read_word,
)

_PERCENT = 0.01
_BYTES_PER_MIB = float(1 << 20)
_AMD_SECONDS = 1.0
_VENDOR = "0x1002"  # AMD's PCI vendor number


class AmdKernelSource:
    """Reads the files of the amdgpu driver."""

    name = "amd"
    interval_seconds = _AMD_SECONDS

    def __init__(self, place: Place, cards: list[Path]) -> None:
        self._table = place.table
        self._cards = cards

    def read(self, out: list[Reading]) -> None:
        for index, card in enumerate(self._cards):
            for name, value in kernel_values(card).items():
                out.append((self._table.key(f"lepton_gpu_{name}", gpu=f"amd{index}"), value))

    def close(self) -> None:
        """Nothing stays open."""


def kernel_values(card: Path) -> dict[str, float]:
    """What one card's folder says, by metric without its prefix."""
    found = {}
    busy = read_number(card / "gpu_busy_percent")
    used, total = read_number(card / "mem_info_vram_used"), read_number(card / "mem_info_vram_total")
    if busy is not None:
        found["utilization_ratio"] = busy * _PERCENT
    if used is not None and total is not None:
        found |= {
            "memory_used_bytes": used,
            "memory_total_bytes": total,
            "memory_free_bytes": total - used,
        }
    return found


class AmdLibrarySource:
    """Asks amdsmi; answers that a device or version of the library does not give are left out."""

    name = "amd"
    interval_seconds = _AMD_SECONDS

    def __init__(self, table: SeriesTable, library: Any) -> None:
        self._table = table
        self._library = library
        self._handles = list(library.amdsmi_get_processor_handles())

    def read(self, out: list[Reading]) -> None:
        for index, handle in enumerate(self._handles):
            for name, labels, value in library_values(self._library, handle):
                out.append((self._table.key(f"lepton_gpu_{name}", gpu=f"amd{index}", **labels), value))

    def close(self) -> None:
        if self._library is not None:
            library, self._library = self._library, None
            library.amdsmi_shut_down()


def library_values(library: Any, handle: Any) -> list[tuple[str, dict[str, str], float]]:
    """What amdsmi says of one device: metric without its prefix, labels, value."""
    found: list[tuple[str, dict[str, str], float]] = []
    calls: tuple[tuple[str, str, str, dict[str, str], float], ...] = (
        # function, entry of its answer, metric, labels, factor
        ("amdsmi_get_gpu_activity", "gfx_activity", "utilization_ratio", {}, _PERCENT),
        ("amdsmi_get_gpu_activity", "umc_activity", "memory_utilization_ratio", {}, _PERCENT),
        ("amdsmi_get_gpu_vram_usage", "vram_used", "memory_used_bytes", {}, _BYTES_PER_MIB),
        ("amdsmi_get_gpu_vram_usage", "vram_total", "memory_total_bytes", {}, _BYTES_PER_MIB),
        ("amdsmi_get_power_info", "current_socket_power", "power_watts", {}, 1.0),
        ("amdsmi_get_gpu_total_ecc_count", "correctable_count", "ras_errors_total", {"kind": "corrected"}, 1),
        ("amdsmi_get_gpu_total_ecc_count", "uncorrectable_count", "ras_errors_total", {"kind": "uncorrected"}, 1),
    )  # fmt: skip
    answers: dict[str, Any] = {}
    for function, entry, name, labels, factor in calls:
        if function not in answers:
            try:
                answers[function] = getattr(library, function)(handle)
            except (AttributeError, library.AmdSmiException):
                answers[function] = {}
        value = answers[function].get(entry)
        if isinstance(value, int | float):  # "N/A" where it is not known
            found.append((name, labels, float(value) * factor))
    return found


def open_amd(place: Place, *, library: Any = None) -> Source | Absent:
    """The devices, by library or by the kernel's files."""
    cards = [
        card / "device"
        for card in sorted((place.sys / "class/drm").glob("card[0-9]*"))
        if "-" not in card.name and read_word(card / "device/vendor") == _VENDOR
    ]
    if not cards and library is None:
        return Absent("amd", "no device (/sys/class/drm)")
    try:
        library = library or importlib.import_module("amdsmi")
    except (ImportError, KeyError, OSError):  # the last two: its shared library is missing
        return AmdKernelSource(place, cards)
    try:
        library.amdsmi_init()
        return AmdLibrarySource(place.table, library)
    except library.AmdSmiException as error:
        return AmdKernelSource(place, cards) if cards else Absent("amd", f"amdsmi: {error}")
