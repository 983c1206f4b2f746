"""The agent's journal: what was taken and not yet sent, on disk, bounded.

Folder of segments, each a file of records that is only appended to: a head (magic, kind, items, length), the body and
a CRC-32 of both. Nothing is repaired: a torn or damaged record ends its segment, what follows in it is counted as lost,
and reading goes on with the next segment. The oldest segment goes when the folder is full, and its items are counted.

What is appended is handed to the operating system at once (it survives the agent's death) and forced to the disk every
``SYNC_SECONDS`` and on close (what is younger may be lost when the machine dies). What was sent is remembered in a
small file that is not forced: after a crash some records are sent twice, which the collector knows by their times.
"""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import zlib
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from leptonai.core.clock import Clock, SystemClock
from leptonai.core.errors import InputError

Kind = Literal["samples", "logs"]
SYNC_SECONDS = 30.0
"""A dead machine's last half minute is worth less than a forced write every few seconds on a disk that trains."""
SPOOL_BYTES = 64 << 20  # 300 series at one sample a second take some 3 KB/s packed: about six hours
_SEGMENT_BYTES = 1 << 20
_MEMORY_BYTES = 4 << 20  # where the disk is full or there is none: about twenty minutes
_MAGIC = 0x4C53
_HEAD = struct.Struct("<HBxIII")  # magic, kind, items, length of the body, CRC-32 of all but itself
_KINDS: tuple[Kind, ...] = ("samples", "logs")
_SUFFIX = ".spool"
_CURSOR = "sent"


@dataclass(frozen=True, slots=True)
class Parcel:
    """One body as it is sent; ``num_items``: samples or log records in it."""

    kind: Kind
    num_items: int
    body: bytes


def pack(parcel: Parcel) -> bytes:
    """A parcel as a record."""
    head = _HEAD.pack(_MAGIC, _KINDS.index(parcel.kind), parcel.num_items, len(parcel.body), 0)[:-4]
    return head + struct.pack("<I", zlib.crc32(parcel.body, zlib.crc32(head))) + parcel.body


def unpack(data: bytes, at: int = 0) -> tuple[Parcel, int] | None:
    """The record at a place, and where it ends; None: there is no whole, undamaged one.

    >>> unpack(pack(Parcel("logs", 1, b"x")))
    (Parcel(kind='logs', num_items=1, body=b'x'), 17)
    """
    if len(data) - at < _HEAD.size:
        return None
    magic, kind, num_items, size, crc = _HEAD.unpack_from(data, at)
    start = at + _HEAD.size
    if magic != _MAGIC or kind >= len(_KINDS) or len(data) - start < size:
        return None
    body = data[start : start + size]
    if zlib.crc32(body, zlib.crc32(data[at : start - 4])) != crc:
        return None
    return Parcel(_KINDS[kind], num_items, body), start + size


def parcels(data: bytes) -> Iterator[Parcel]:
    """The undamaged records of a segment up to the first damaged one."""
    at = 0
    while (found := unpack(data, at)) is not None:
        yield found[0]
        at = found[1]


class Spool:
    """Keeps parcels in order until they are sent. Safe for one thread that appends and one that sends.

    Args:
        folder: made where it is missing; None: memory only. One agent at a time.
        max_bytes: at most so much on disk; the oldest goes first.

    Raises:
        InputError: the folder cannot be made or written to.
    """

    def __init__(
        self, folder: Path | None, *, max_bytes: int = SPOOL_BYTES, clock: Clock | None = None
    ) -> None:
        self.dropped: dict[str, int] = {"full": 0, "damaged": 0, "disk": 0}
        self._lock = threading.Lock()
        self._clock = clock or SystemClock()
        self._folder = folder
        self._max_bytes = max_bytes
        self._segment_bytes = max(4096, min(_SEGMENT_BYTES, max_bytes // 8))
        self._memory: deque[Parcel] = deque()
        self._memory_bytes = 0
        self._sizes: dict[int, int] = {}  # segment number -> bytes; the last one is appended to
        self._file = -1
        self._at = (0, 0)  # segment and place of the first record not yet sent
        self._next = self._at
        self._synced_seconds = self._clock.monotonic_seconds()
        if folder is not None:
            self._open(folder)

    @property
    def size_bytes(self) -> int:
        """What waits, on disk and in memory."""
        return sum(self._sizes.values()) + self._memory_bytes

    def append(self, parcel: Parcel) -> None:
        """Keep a parcel; where the disk takes none it stays in memory, the oldest there dropped for it."""
        with self._lock:
            if self._folder is None or not self._append(pack(parcel)):
                self._memory.append(parcel)
                self._memory_bytes += len(parcel.body)
                while self._memory_bytes > _MEMORY_BYTES:
                    oldest = self._memory.popleft()
                    self._memory_bytes -= len(oldest.body)
                    self.dropped["disk" if self._folder else "full"] += oldest.num_items

    def first(self) -> Parcel | None:
        """The oldest parcel that is not yet sent; None: all are."""
        with self._lock:
            while self._sizes:
                segment, at = self._at
                found = self._load(segment, at)
                if found is not None:
                    self._next = (segment, found[1])
                    return found[0]
                if segment == max(self._sizes):
                    self._skip_damage(segment, at)
                    break
                self._count_damage(segment, at)
                self._remove(segment)
            return self._memory[0] if self._memory else None

    def sent(self, parcel: Parcel) -> None:
        """The parcel that :meth:`first` gave is done with."""
        with self._lock:
            if self._memory and self._memory[0] is parcel:
                self._memory.popleft()
                self._memory_bytes -= len(parcel.body)
            elif self._next[0] == self._at[0]:  # else its segment was dropped meanwhile
                self._at = self._next
                if self._at[0] != max(self._sizes) and self._at[1] >= self._sizes[self._at[0]]:
                    self._remove(self._at[0])
                self._save_cursor()

    def sync(self, *, now: bool = False) -> None:
        """Force to the disk what is older than the promise, or all of it."""
        with self._lock:
            seconds = self._clock.monotonic_seconds()
            if self._file >= 0 and (now or seconds - self._synced_seconds >= SYNC_SECONDS):
                self._synced_seconds = seconds
                with contextlib.suppress(OSError):
                    os.fdatasync(self._file)

    def close(self) -> None:
        """Force all to the disk and let go; again is allowed."""
        self.sync(now=True)
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def _open(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            for path in folder.glob(f"*{_SUFFIX}"):
                if path.stem.isdigit():
                    self._sizes[int(path.stem)] = path.stat().st_size
            first = min(self._sizes, default=1)
            self._at = (first, 0)
            with contextlib.suppress(OSError, ValueError):
                segment, place = (int(word) for word in (folder / _CURSOR).read_text("ascii").split())
                if segment in self._sizes:
                    for old in [number for number in self._sizes if number < segment]:
                        self._remove(old)
                    self._at = (segment, min(place, self._sizes[segment]))
            self._begin(max(self._sizes, default=0) + 1)
        except OSError as error:
            raise InputError(
                f"{folder}: cannot be written to: {error.strerror}", hint="choose another folder with --spool"
            ) from error
        if self._at[0] not in self._sizes:
            self._at = (min(self._sizes), 0)

    def _begin(self, segment: int) -> None:
        """Start a segment. What a crash tore stays behind in the one before; nothing is appended to it."""
        assert self._folder is not None
        path = self._folder / f"{segment:010d}{_SUFFIX}"
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        if self._file >= 0:
            with contextlib.suppress(OSError):
                os.fdatasync(self._file)
            os.close(self._file)
        self._file = file
        self._sizes[segment] = 0

    def _append(self, record: bytes) -> bool:
        last = max(self._sizes)
        try:
            if self._sizes[last] and self._sizes[last] + len(record) > self._segment_bytes:
                last += 1
                self._begin(last)
            while sum(self._sizes.values()) + len(record) > self._max_bytes and len(self._sizes) > 1:
                self._drop_oldest()
            written = os.write(self._file, record)
            if written != len(record):
                os.ftruncate(self._file, self._sizes[last])
                return False
        except OSError:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._sizes[last])
            return False
        self._sizes[last] += len(record)
        return True

    def _drop_oldest(self) -> None:
        segment = min(self._sizes)
        at = self._at[1] if segment == self._at[0] else 0
        self.dropped["full"] += sum(parcel.num_items for parcel in parcels(self._bytes(segment)[at:]))
        self._remove(segment)

    def _bytes(self, segment: int) -> bytes:
        assert self._folder is not None
        try:
            return (self._folder / f"{segment:010d}{_SUFFIX}").read_bytes()
        except OSError:
            return b""

    def _load(self, segment: int, at: int) -> tuple[Parcel, int] | None:
        return None if at >= self._sizes[segment] else unpack(self._bytes(segment), at)

    def _skip_damage(self, segment: int, at: int) -> None:
        if at < self._sizes[segment]:  # damaged while it is still written to
            self._count_damage(segment, at)
            self._at = (segment, self._sizes[segment])

    def _count_damage(self, segment: int, at: int) -> None:
        if at < self._sizes[segment]:
            self.dropped["damaged"] += 1

    def _remove(self, segment: int) -> None:
        assert self._folder is not None
        with contextlib.suppress(OSError):
            (self._folder / f"{segment:010d}{_SUFFIX}").unlink()
        del self._sizes[segment]
        if segment == self._at[0] and self._sizes:
            self._at = (min(self._sizes), 0)

    def _save_cursor(self) -> None:
        assert self._folder is not None
        with contextlib.suppress(OSError):
            temporary = self._folder / f"{_CURSOR}.new"
            temporary.write_text(f"{self._at[0]} {self._at[1]}\n", "ascii")
            temporary.replace(self._folder / _CURSOR)
