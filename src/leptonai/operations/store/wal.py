"""The write-ahead log: samples are on the disk before they are acknowledged; callers share the disk's forcing.

One record per call: how many, then numbers of series, times and values as columns. After a cut a fresh file begins
with what still waits, and the older files go. Replaying any of them again does no harm.
"""

from __future__ import annotations

import re
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import Fault
from leptonai.operations.store.record_log import NoSpace, Record, RecordLog, recover

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Samples = tuple[Ints, Ints, Floats]

_SAMPLES = 1
_COUNT = struct.Struct("<I")
_RECORD_SAMPLES = 1 << 20
"""Most in one record; longer calls take several."""
_NAME = re.compile(r"wal-(\d{10})\.log")


class WriteAheadLog:
    """The log of a directory; :meth:`wait` from any thread, the rest under the store's lock."""

    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        self._directory, self._say = directory, say
        self._old = sorted(path for path in directory.iterdir() if _NAME.fullmatch(path.name))
        self._number = int(self._old[-1].name[4:14]) + 1 if self._old else 1
        self._log = RecordLog(self._path(self._number))
        self._turn = threading.Condition()
        self._written = self._synced = 0
        self._busy = False
        self._broken: Fault | None = None
        self.num_damaged = 0

    def _path(self, number: int) -> Path:
        return self._directory / f"wal-{number:010d}.log"

    def recovered(self) -> Iterator[Samples]:
        """The samples of older files, in the order in which they were written."""
        for path in self._old:
            records, num_damaged = recover(path, self._say)
            self.num_damaged += num_damaged
            yield from (_samples(record) for record in records if record.kind == _SAMPLES)

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return self._log.size_bytes + sum(path.stat().st_size for path in self._old)

    def append(self, ids: Ints, times_ms: Ints, values: Floats) -> None:
        """Hand samples to the operating system.

        Raises:
            NoSpace: the disk is full.
            Fault: it is or was broken.
        """
        if self._broken is not None:
            raise self._broken
        for low in range(0, len(ids), _RECORD_SAMPLES):
            part = slice(low, low + _RECORD_SAMPLES)
            self._log.append(_SAMPLES, _payload(ids[part], times_ms[part], values[part]))
        self._written += 1

    def ticket(self) -> int:
        """What :meth:`wait` must reach for all that was appended so far to be durable."""
        return self._written

    def wait(self, ticket: int) -> None:
        """Return when the disk holds what was appended up to the ticket; one of the waiting forces it for all.

        Raises:
            Fault: the disk is broken. What it holds is then not known: nothing is accepted until reopening.
        """
        with self._turn:
            while self._synced < ticket:
                if self._broken is not None:
                    raise self._broken
                if self._busy:
                    self._turn.wait()
                    continue
                self._busy = True
                target, log = self._written, self._log
                self._turn.release()
                failure: Fault | None = None
                try:
                    log.sync()
                except Fault as error:
                    failure = error
                finally:
                    self._turn.acquire()
                    self._busy = False
                    self._broken = self._broken or failure
                    if failure is None:
                        self._synced = max(self._synced, target)
                    self._turn.notify_all()

    def restart(self, ids: Ints, times_ms: Ints, values: Floats) -> None:
        """Begin a fresh file with these samples and remove the older ones, whose samples are in chunks.

        Raises:
            NoSpace: the disk is full; the log is as before.
            Fault: it is broken.
        """
        fresh = RecordLog(self._path(self._number + 1))
        try:
            for low in range(0, len(ids), _RECORD_SAMPLES):
                part = slice(low, low + _RECORD_SAMPLES)
                fresh.append(_SAMPLES, _payload(ids[part], times_ms[part], values[part]))
            fresh.sync()
        except (NoSpace, Fault):
            fresh.close()
            fresh.path.unlink(missing_ok=True)
            raise
        with self._turn:
            while self._busy:  # someone forces the old file, and must not find it closed
                self._turn.wait()
            used, self._log = self._log, fresh
            self._number += 1
            self._synced = self._written  # in chunks, or in the fresh file, and both are on the disk
            self._turn.notify_all()
        used.close()
        for path in [*self._old, used.path]:
            path.unlink(missing_ok=True)
        self._old = []

    def close(self) -> None:
        """Force the rest to the disk and let go."""
        self.wait(self._written)
        self._log.close()


def _payload(ids: Ints, times_ms: Ints, values: Floats) -> bytes:
    return b"".join([
        _COUNT.pack(len(ids)), ids.astype("<u4").tobytes(), times_ms.astype("<i8").tobytes(),
        values.astype("<f8", copy=False).tobytes(),
    ])  # fmt: skip


def _samples(record: Record) -> Samples:
    (count,) = _COUNT.unpack_from(record.payload)
    ids = np.frombuffer(record.payload, "<u4", count, _COUNT.size).astype(np.int64)
    times = np.frombuffer(record.payload, "<i8", count, _COUNT.size + 4 * count).astype(np.int64)
    values = np.frombuffer(record.payload, "<f8", count, _COUNT.size + 12 * count).astype(np.float64)
    return ids, times, values
