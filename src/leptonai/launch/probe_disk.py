"""How fast the disk under a directory is: writing, reading, and putting a small file on it for good."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from leptonai.compute.steady_timing import quiet_seconds
from leptonai.core.errors import Fault

FILE_BYTES = 64 * 2**20
QUICK_FILE_BYTES = 8 * 2**20
BLOCK_BYTES = 4 * 2**20
NUM_SYNCS = 15
SYNC_BYTES = 4096
# A slow or busy disk shows its rate with less than the whole file; its last fsync comes on top.
MOST_SECONDS = 2.0
# A probe must not be what fills a disk.
SPARE_BYTES = 256 * 2**20


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskRates:
    """What was found; bytes a second, and seconds of one fsync of a small file."""

    write_bytes_per_second: float
    read_bytes_per_second: float
    sync_seconds: float


def probe_disk(directory: Path, *, quick: bool = False) -> DiskRates:
    """Write, read and remove a file in a directory.

    Reading asks the kernel first to forget the file; where that has no effect (memory file systems), what is
    measured is memory.

    Raises:
        Fault: less than 320 MiB are free there, or the disk fails.
    """
    num_bytes = QUICK_FILE_BYTES if quick else FILE_BYTES
    free = shutil.disk_usage(directory).free
    if free < num_bytes + SPARE_BYTES:
        raise Fault(f"{directory}: too little space to measure the disk: {free // 2**20} MiB are free")
    path = directory / f".probe-{secrets.token_hex(8)}"
    try:
        return DiskRates(
            write_bytes_per_second=_write(path, num_bytes),
            read_bytes_per_second=_read(path),
            sync_seconds=_sync(path),
        )
    except OSError as error:
        raise Fault(f"{directory}: the disk could not be measured: {error.strerror}") from error
    finally:
        with contextlib.suppress(OSError):
            path.unlink()


def _write(path: Path, num_bytes: int) -> float:
    """Bytes a second, of as much as fits in the time."""
    block = os.urandom(BLOCK_BYTES)  # not compressible, should the file system try
    done = 0
    began = time.perf_counter()
    with path.open("xb", buffering=0) as file:
        while done < num_bytes and time.perf_counter() - began < MOST_SECONDS:
            done += file.write(block)
        os.fsync(file.fileno())
    return done / (time.perf_counter() - began)


def _read(path: Path) -> float:
    """Bytes a second, of as much as fits in the time."""
    buffer = bytearray(BLOCK_BYTES)
    done = 0
    with path.open("rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        began = time.perf_counter()
        while count := file.readinto(buffer):
            done += count
            if time.perf_counter() - began > MOST_SECONDS:
                break
        return done / (time.perf_counter() - began)


def _sync(path: Path) -> float:
    times: list[float] = []
    with path.open("r+b", buffering=0) as file:
        while len(times) < NUM_SYNCS and sum(times) < MOST_SECONDS:
            file.seek(0)
            file.write(bytes(SYNC_BYTES))
            began = time.perf_counter()
            os.fsync(file.fileno())
            times.append(time.perf_counter() - began)
    return quiet_seconds(times)
