"""What a source of readings is, and what it writes into."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from leptonai.operations.agent.catalogue import CATALOGUE
from leptonai.operations.alarms import Severity
from leptonai.operations.series import NAME_LABEL, Series

Reading = tuple[int, float]
"""The key of a series in the table, and its value now."""

_CHUNK_BYTES = 1 << 16  # more than nearly every file of /proc; longer ones take several reads
_GONE = (errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.ENOENT)  # the device behind an open file went away


class SeriesTable:
    """Gives every series a small number, once, so that a reading is two numbers and nothing is built each second.

    Args:
        common: labels of every series, such as ``node``.

    >>> table = SeriesTable({"node": "a"})
    >>> key = table.key("node_load1")
    >>> table.series[key]
    node_load1{node="a"}
    >>> table.key("node_load1") == key
    True
    """

    def __init__(self, common: Mapping[str, str] | None = None) -> None:
        self.common = dict(common or {})
        self.series: list[Series] = []
        self._keys: dict[Series, int] = {}

    def key(self, name: str, /, **labels: str) -> int:
        """The number of a series of the catalogue; common labels yield to those given here."""
        assert name in CATALOGUE, name
        return self.key_of(Series.of(name, **{**self.common, **labels}))

    def key_of(self, series: Series) -> int:
        """The number of any series."""
        key = self._keys.get(series)
        if key is None:
            key = self._keys[series] = len(self.series)
            self.series.append(series)
        return key

    def with_common(self, name: str, labels: Mapping[str, str]) -> int:
        """The number of a series that need not be in the catalogue."""
        kept = {key: value for key, value in {**self.common, **labels}.items() if key != NAME_LABEL}
        return self.key_of(Series.of(name, **kept))


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRecord:
    """A message of the kernel or of a device, for the fault catalogue; ``at_seconds`` is wall time."""

    at_seconds: float
    origin: str
    severity: Severity
    message: str
    labels: tuple[tuple[str, str], ...] = ()


class Source(Protocol):
    """Something that can be read again and again; ``interval_seconds``: how often is often enough."""

    name: str
    interval_seconds: float

    def read(self, out: list[Reading]) -> None:
        """Append what is so now.

        Raises:
            OSError: it cannot be read at present.
        """
        ...

    def close(self) -> None:
        """Let go of files; again is allowed."""
        ...


@dataclass(frozen=True, slots=True)
class Absent:
    """A source that this node does not have, and why, in words for a person."""

    name: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a node's files are; tests point it at a folder of recorded ones."""

    table: SeriesTable
    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    per_core: bool = False


Opener = Callable[[Place], Source | Absent]


class KeptFile:
    """A file of ``/proc`` or ``/sys`` that stays open and is read anew from its start each time.

    Raises:
        OSError: it cannot be opened, or read (and not opened again either).
    """

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)
        self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self) -> str:
        """All of its text; bytes that are no text become U+FFFD."""
        try:
            return self._read()
        except OSError as error:
            if error.errno not in _GONE:
                raise
        self.close()
        self._file = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        return self._read()

    def _read(self) -> str:
        data = os.pread(self._file, _CHUNK_BYTES, 0)
        if len(data) == _CHUNK_BYTES:
            parts = [data]
            size = len(data)
            while data := os.pread(self._file, _CHUNK_BYTES, size):
                parts.append(data)
                size += len(data)
            data = b"".join(parts)
        return data.decode("utf-8", "replace")

    def close(self) -> None:
        """Let go of the file; again is allowed."""
        if self._file >= 0:
            file, self._file = self._file, -1
            os.close(file)


def read_number(path: Path) -> float | None:
    """The number a small file holds; None: there is no such file, or no number in it."""
    try:
        return float(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, ValueError):
        return None


def read_word(path: Path) -> str:
    """The text of a small file without its line end; empty: there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
