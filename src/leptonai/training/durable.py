"""Directories that appear whole or not at all, and stay after a power cut.

A directory is filled under a temporary name beside its final one, every file and the directory itself are
flushed to the disk, and one rename makes it visible. Whatever a killed writer leaves is recognised by its
name and removed by the next one. Linux only (flock).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

TEMPORARY_PREFIX = ".tmp-"
_LOCK_NAME = ".lock"
_CHUNK_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class Written:
    """What was written to a file: SHA-256 of its bytes, in hex, and their number."""

    sha256: str
    size_bytes: int


def write_durably(path: Path, pieces: Iterable[bytes | memoryview]) -> Written:
    """Write ``pieces`` to a new file at ``path`` and flush it to the disk; hashed on the way, read only once.

    Raises:
        OSError: it could not be written; the file may be there in part.
    """
    digest = hashlib.sha256()
    size_bytes = 0
    with open(path, "xb", buffering=0) as file:
        for piece in _chunks(pieces):
            digest.update(piece)
            _write_all(file.fileno(), piece)
            size_bytes += len(piece)
        os.fsync(file.fileno())
    return Written(digest.hexdigest(), size_bytes)


def _chunks(pieces: Iterable[bytes | memoryview]) -> Iterator[memoryview]:
    """Small pieces joined and large ones cut: a chunk is still in the CPU's cache when it is written."""
    joined = bytearray()
    for piece in pieces:
        view = memoryview(piece)
        if len(joined) + len(view) < _CHUNK_BYTES:
            joined += view
            continue
        yield memoryview(bytes(joined))
        joined.clear()
        for start in range(0, len(view), _CHUNK_BYTES):
            yield view[start : start + _CHUNK_BYTES]
    yield memoryview(bytes(joined))


def _write_all(descriptor: int, view: memoryview) -> None:
    while len(view):
        view = view[os.write(descriptor, view) :]


def flush_directory(path: Path) -> None:
    """Flush the names in ``path`` to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Create ``path`` and its parents where missing, durably."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        flush_directory(folder.parent)


@contextmanager
def locked(directory: Path) -> Iterator[None]:
    """Wait until no other process is in such a block; the kernel frees the lock of one that died."""
    with open(directory / _LOCK_NAME, "ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def published(parent: Path, name: str) -> Iterator[Path]:
    """A new, empty directory that takes its place as ``parent/name`` when the block ends well, else vanishes.

    The caller holds :func:`locked` on ``parent``, has flushed the files it put in, and ``name`` is free.

    Raises:
        OSError: the directory could not be made or moved.
    """
    temporary = parent / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    temporary.mkdir()
    try:
        yield temporary
        flush_directory(temporary)
        temporary.rename(parent / name)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    flush_directory(parent)


def remove_directory(path: Path) -> None:
    """Remove ``path`` so that its name goes first: no reader, and no crash, ever shows it half removed.

    The caller holds :func:`locked` on the parent. Needs no free space, so it works on a full disk.
    """
    doomed = path.with_name(f"{TEMPORARY_PREFIX}{path.name}")
    path.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def remove_leftovers(parent: Path) -> None:
    """Remove what killed writers left in ``parent``, which the caller has :func:`locked`."""
    for path in parent.glob(f"{TEMPORARY_PREFIX}*"):
        shutil.rmtree(path, ignore_errors=True)
