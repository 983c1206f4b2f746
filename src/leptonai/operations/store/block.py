"""A chunk file: one tier's chunks of many series over some stretch of time; written once, never changed.

Head mark, columns of times (series sampled together share one), then each chunk's columns of values, then the index
and a tail that says where it is. Index, times and chunks each carry a CRC-32. Raw chunks have one column of values;
those of rolled-up tiers have five: least, most, sum, count, last.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import Fault
from leptonai.operations.store.codec import (
    decode_integers,
    decode_times,
    decode_values,
    encode_integers,
    encode_times,
    encode_values,
)
from leptonai.operations.store.limits import TIERS, Tier
from leptonai.operations.store.record_log import NoSpace
from leptonai.operations.store.rollup import Rows
from leptonai.operations.store.varints import read_unsigned, unsigned

_MARK = b"LEPBLK1\n"
_TAIL = struct.Struct("<QII8s")
_NUM_COLUMNS = {"raw": 1, "minute": 5, "hour": 5}
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Chunk:
    """What goes into a file: a series' number and its rows."""

    series_id: int
    rows: Rows


@dataclass(frozen=True, slots=True, eq=False)
class _Index:
    """Of chunk c: series, rows, times' column, first and last time, checksum; ``ends`` of every column in the file."""

    ids: Ints
    counts: Ints
    time_columns: Ints
    first_ms: Ints
    last_ms: Ints
    checksums: Ints
    time_ends: Ints
    time_checksums: Ints
    ends: Ints


def write_block(path: Path, tier: Tier, chunks: Iterable[Chunk]) -> None:
    """Write a chunk file and force it to the disk.

    Args:
        path: of the file; nothing is left there on failure.
        tier: says how many columns there are.
        chunks: ascending by series, at most one each, none empty.

    Raises:
        NoSpace: the disk is full.
        Fault: it is broken.
    """
    data = _block_bytes(tier, chunks)
    try:
        with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        path.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace from error
        raise Fault(f"{path}: could not be written: {error.strerror}") from error


def _block_bytes(tier: Tier, chunks: Iterable[Chunk]) -> bytes:
    times: dict[bytes, tuple[int, bytes]] = {}
    facts: list[tuple[int, ...]] = []
    payloads: list[bytes] = []
    for chunk in chunks:
        rows = chunk.rows
        key = rows.times_ms.tobytes()
        if key not in times:
            times[key] = (len(times), encode_times(rows.times_ms))
        columns = rows.columns()[-_NUM_COLUMNS[tier] :]  # of a sample, the last is the sample
        encoded = [encode_values(column) for column in columns]
        first, last = int(rows.times_ms[0]), int(rows.times_ms[-1])
        facts.append((chunk.series_id, len(rows), times[key][0], first, last, zlib.crc32(b"".join(encoded))))
        payloads += encoded
    time_bytes = [encoded for _, encoded in times.values()]
    ends = len(_MARK) + np.cumsum([len(part) for part in [*time_bytes, *payloads]])
    table = np.array(facts, np.int64).reshape(-1, 6).T
    parts = [
        *table,
        ends[: len(times)],
        np.array([zlib.crc32(part) for part in time_bytes]),
        ends[len(times) :],
    ]
    packed = [encode_integers(np.ascontiguousarray(part, np.int64)) for part in parts]
    index = b"".join([
        bytes([TIERS.index(tier)]), unsigned(len(facts)), unsigned(len(times)),
        *(unsigned(len(part)) + part for part in packed),
    ])  # fmt: skip
    body = b"".join([_MARK, *time_bytes, *payloads])
    return body + index + _TAIL.pack(len(body), len(index), zlib.crc32(index), _MARK)


class Block:
    """An open chunk file; its index is in memory.

    Raises:
        Fault: it cannot be read, or its index is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise Fault(f"{path}: cannot be read: {error.strerror}") from error
        try:
            self.size_bytes = os.fstat(self._file).st_size
            self.tier, self._index = self._read_index()
        except (IndexError, ValueError, struct.error, OSError) as error:
            self.close()
            raise Fault(f"{path}: the index is damaged") from error
        except BaseException:
            self.close()
            raise
        self.first_ms = int(self._index.first_ms.min(initial=1 << 62))
        self.last_ms = int(self._index.last_ms.max(initial=-(1 << 62)))
        self.num_rows = int(self._index.counts.sum())

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)

    @property
    def ids(self) -> Ints:
        """Numbers of the series that have a chunk here, ascending."""
        return self._index.ids

    @property
    def last_ms_of(self) -> Ints:
        """The last time of each chunk, as :attr:`ids`."""
        return self._index.last_ms

    def span(self, series_id: int) -> tuple[int, int] | None:
        """First and last time of a series' chunk; None: it has none here."""
        at = self._find(series_id)
        return None if at is None else (int(self._index.first_ms[at]), int(self._index.last_ms[at]))

    def rows(self, series_id: int) -> Rows | None:
        """A series' chunk; None: it has none here.

        Raises:
            Fault: the chunk is damaged.
        """
        at = self._find(series_id)
        if at is None:
            return None
        index, columns = self._index, _NUM_COLUMNS[self.tier]
        count, which = int(index.counts[at]), int(index.time_columns[at])
        start = int(index.time_ends[which - 1]) if which else len(_MARK)
        packed = self._read(start, int(index.time_ends[which]))
        first = at * columns
        start = int(index.ends[first - 1]) if first else int(index.time_ends[-1])
        payload = self._read(start, int(index.ends[first + columns - 1]))
        if zlib.crc32(packed) != index.time_checksums[which] or zlib.crc32(payload) != index.checksums[at]:
            raise Fault(f"{self.path}: the chunk of series {series_id} is damaged")
        times = decode_times(packed, count)
        parts, low = [], 0
        for end in index.ends[first : first + columns]:
            parts.append(decode_values(payload[low : int(end) - start], count))
            low = int(end) - start
        return Rows.of_samples(times, parts[0]) if columns == 1 else Rows(times, *parts)

    def _find(self, series_id: int) -> int | None:
        at = int(np.searchsorted(self._index.ids, series_id))
        return at if at < len(self._index.ids) and self._index.ids[at] == series_id else None

    def _read(self, start: int, end: int) -> bytes:
        return os.pread(self._file, end - start, start)

    def _read_index(self) -> tuple[Tier, _Index]:
        tail = os.pread(self._file, _TAIL.size, max(0, self.size_bytes - _TAIL.size))
        start, length, checksum, mark = _TAIL.unpack(tail)
        data = os.pread(self._file, length, start) if start + length <= self.size_bytes else b""
        if mark != _MARK or len(data) != length or zlib.crc32(data) != checksum:
            raise Fault(f"{self.path}: the index is damaged")
        tier = TIERS[data[0]]
        chunks, at = read_unsigned(data, 1)
        times, at = read_unsigned(data, at)
        columns: list[Ints] = []
        for count in (*(chunks,) * 6, times, times, chunks * _NUM_COLUMNS[tier]):
            length, at = read_unsigned(data, at)
            columns.append(decode_integers(data[at : at + length], 0, count))
            at += length
        return tier, _Index(*columns)
