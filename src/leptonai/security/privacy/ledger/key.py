"""The secret that seals the ledger: 32 bytes in a file that only its owner may read, made once."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from pathlib import Path

from leptonai.core.disk import sync_directory
from leptonai.core.errors import InputError

KEY_BYTES = 32


def read_key(path: Path) -> bytes:
    """The key in a file.

    Raises:
        InputError: the file is missing, a link, may be read by others, or holds no key.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        raise InputError(
            f"{path}: there is no ledger key", hint="put the key file back from its copy"
        ) from None
    except OSError as error:
        raise InputError(f"{path}: the ledger key cannot be read: {error.strerror}") from error
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_mode & 0o077 or found.st_uid != os.geteuid():
            raise InputError(
                f"{path}: the ledger key may be read by others",
                hint=f"make it yours alone: chown $USER {path}; chmod 600 {path}",
            )
        text = file.read(2 * KEY_BYTES + 2)
    # Words of the file never enter the message: they may be most of a key.
    with contextlib.suppress(ValueError):
        key = bytes.fromhex(text.decode("ascii").removesuffix("\n"))
        if len(key) == KEY_BYTES:
            return key
    raise InputError(f"{path}: holds no ledger key", hint="put the key file back from its copy")


def make_key(path: Path) -> bytes:
    """Make the key if there is none; of several processes at once one makes it and all get the same.

    Raises:
        InputError: it cannot be written, or as :func:`read_key`.
    """
    temporary = path.parent / f".tmp-{secrets.token_hex(8)}"
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(secrets.token_hex(KEY_BYTES).encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
            # A link, unlike a rename, never replaces a key that another process has just made.
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        sync_directory(path.parent)
    except OSError as error:
        raise InputError(f"{path}: the ledger key cannot be written: {error.strerror}") from error
    return read_key(path)
