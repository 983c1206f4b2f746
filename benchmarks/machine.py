"""What machine and which versions a result was measured on."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import psutil

MATRIX_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16")
BFLOAT16_FLAGS = ("avx512_bf16", "amx_bf16")


def cpu_name() -> str:
    """The processor's name as the kernel gives it."""
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def cpu_flags() -> tuple[str, ...]:
    """Those of the vector features that training profits from which this processor has."""
    for line in _cpuinfo():
        if line.startswith("flags"):
            found = set(line.split(":", 1)[1].split())
            return tuple(flag for flag in MATRIX_FLAGS if flag in found)
    return ()


def hardware() -> str:
    """One line: processor, cores, memory, vector features."""
    gibibytes = psutil.virtual_memory().total / 2**30
    features = " ".join(cpu_flags()) or "no vector features"
    return f"{cpu_name()}, {num_cores()} cores, {gibibytes:.0f} GiB, {features}"


def hardware_slug(name: str, cores: int) -> str:
    """A short file-name part for a machine.

    >>> hardware_slug("Intel(R) Xeon(R) CPU @ 2.20GHz", 2)
    'intel-xeon-2c'
    """
    plain = re.sub(r"\((r|tm)\)|@.*|\b(cpu|processor|\d+-core)\b", " ", name.lower())
    words = re.findall(r"[a-z0-9]+", plain)
    return "-".join([*words[:4], f"{cores}c"])


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Installed versions of Python and of those ``packages`` that are there."""
    found = {"python": platform.python_version(), "linux": platform.release().split("-")[0]}
    for package in packages:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.exists() else []
