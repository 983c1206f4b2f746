"""A file of records that only grows: each with its length and checksum, so that damage is found and told.

A record is 16 bytes of head (mark, kind, length, CRC-32 of kind, length and payload; little-endian) and its payload.
A crash can leave the last record torn: it was not acknowledged, and is cut off. What is damaged before a whole
record is another matter: it is stepped over and told.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from leptonai.core.disk import sync_directory
from leptonai.core.errors import Fault, InputError

_HEAD = struct.Struct("<4sIII")
_MARK = b"\xa5LR\x01"
MAX_RECORD_BYTES = 1 << 26
"""Longer lengths are damage: no one call appends so much."""
_FILE_MODE = 0o600


class NoSpace(Exception):
    """The disk, or the quota on it, is full; nothing was written."""


@dataclass(frozen=True, slots=True)
class Record:
    """One record: what kind, and its payload."""

    kind: int
    payload: bytes


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes that are no record, though whole records follow them."""

    first_byte: int
    num_bytes: int


@dataclass(frozen=True, slots=True)
class Torn:
    """Bytes after the last whole record."""

    first_byte: int
    num_bytes: int


class RecordLog:
    """Appends records to one file; not safe to use from several threads, except :meth:`sync`."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, _FILE_MODE)
            sync_directory(path.parent)
        except OSError as error:
            raise InputError(f"{path}: cannot be opened: {error.strerror}") from error
        self.path = path
        self.size_bytes = os.fstat(self._file).st_size

    def append(self, kind: int, payload: bytes) -> None:
        """Hand one record to the operating system: all of it or nothing.

        Raises:
            NoSpace: the disk is full.
            Fault: it is broken.
        """
        record = frame(kind, payload)
        try:
            written = 0
            while written < len(record):
                written += os.write(self._file, record[written:] if written else record)
        except OSError as error:
            os.ftruncate(self._file, self.size_bytes)
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise NoSpace from error
            raise Fault(f"{self.path}: could not be written: {error.strerror}") from error
        self.size_bytes += len(record)

    def sync(self) -> None:
        """Force all that was appended to the disk.

        Raises:
            Fault: the disk is broken; what it holds of the latest records is not known.
        """
        try:
            os.fdatasync(self._file)
        except OSError as error:
            raise Fault(f"{self.path}: could not be forced to the disk: {error.strerror}") from error

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


def frame(kind: int, payload: bytes) -> bytes:
    """One record as bytes."""
    return _HEAD.pack(_MARK, kind, len(payload), _checksum(kind, payload)) + payload


def _checksum(kind: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(struct.pack("<II", kind, len(payload))))


def read_records(data: bytes) -> Iterator[Record | Damage | Torn]:
    """What a file of records holds, in order.

    >>> list(read_records(frame(7, b"x") + b"half"))
    [Record(kind=7, payload=b'x'), Torn(first_byte=17, num_bytes=4)]
    """
    at = 0
    while at < len(data):
        found = _record_at(data, at)
        if found is not None:
            yield found
            at += _HEAD.size + len(found.payload)
            continue
        following = _next_record(data, at + 1)
        if following is None:
            yield Torn(at, len(data) - at)
            return
        yield Damage(at, following - at)
        at = following


def _record_at(data: bytes, at: int) -> Record | None:
    if len(data) - at < _HEAD.size:
        return None
    mark, kind, length, checksum = _HEAD.unpack_from(data, at)
    if mark != _MARK or length > min(MAX_RECORD_BYTES, len(data) - at - _HEAD.size):
        return None
    payload = data[at + _HEAD.size : at + _HEAD.size + length]
    return Record(kind, payload) if _checksum(kind, payload) == checksum else None


def _next_record(data: bytes, at: int) -> int | None:
    while (at := data.find(_MARK, at)) >= 0:
        if _record_at(data, at) is not None:
            return at
        at += 1
    return None


def recover(path: Path, say: Callable[[str], None]) -> tuple[list[Record], int]:
    """The records of a file, its torn end cut off; and how many places are damaged, each said.

    Raises:
        InputError: the file cannot be read or repaired.
    """
    records: list[Record] = []
    num_damaged = 0
    try:
        for found in read_records(path.read_bytes()):
            match found:
                case Record():
                    records.append(found)
                case Damage(first, size):
                    num_damaged += 1
                    say(f"{path.name}: {size} bytes from byte {first} on are damaged; what they held is lost")
                case Torn(first, size):
                    with path.open("r+b") as file:
                        file.truncate(first)
                        os.fsync(file.fileno())
                    say(f"{path.name}: a record torn by a crash was cut off ({size} bytes, not acknowledged)")
    except OSError as error:
        raise InputError(f"{path}: cannot be recovered: {error.strerror}") from error
    return records, num_damaged
