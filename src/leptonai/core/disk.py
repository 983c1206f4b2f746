"""Files written all or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from pathlib import Path

from leptonai.core.errors import Fault, InputError


def write_atomically(path: Path, data: bytes) -> None:
    """Write a file all or not at all: after a crash ``path`` holds the old bytes or the new ones.

    The data is on the disk when this returns. On failure nothing is left behind.

    Raises:
        InputError: the directory is missing or may not be written to.
        Fault: the disk is full or broken.
    """
    # In the same directory, because a rename is atomic only within one file system.
    temporary = path.parent / f".tmp-{secrets.token_hex(8)}"
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
        sync_directory(path.parent)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, PermissionError) as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}") from error
    except OSError as error:
        if error.errno == errno.EROFS:
            raise InputError(f"{path}: cannot be written: {error.strerror}") from error
        raise Fault(f"{path}: could not be written: {error.strerror}") from error


def sync_directory(directory: Path) -> None:
    """Put a directory's entries on the disk, so that a file created or renamed in it survives a crash."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
