"""The files and sockets under :mod:`leptonai.core.control`. Linux only.

A Unix socket's address holds 107 bytes, a run directory's path may be longer: both sides open the directory
and reach the socket through ``/proc/self/fd/N``.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from leptonai.core.errors import Fault, InputError, Refused

SOCKET_NAME = "control.sock"
TOKEN_NAME = "control.token"


def json_line(values: Mapping[str, Any]) -> bytes:
    """One JSON object as a line."""
    return json.dumps(values).encode("ascii") + b"\n"


def lock_directory(directory: Path) -> int:
    """Open the directory and hold it until the descriptor is closed.

    Raises:
        InputError: it cannot be opened, or a living run holds it.
    """
    folder = _open_directory(directory)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(folder)
        raise InputError(
            f"{directory}: another run lives there", hint="wait for it, or use another run directory"
        ) from None
    return folder


def listen(folder: int, directory: Path, token: str) -> socket.socket:
    """Put token and socket into the locked directory, in place of those a killed run left.

    Raises:
        InputError: the directory cannot be written to.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        remove_files(folder)
        file = os.open(TOKEN_NAME, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=folder)
        with open(file, "w", encoding="ascii") as stream:
            stream.write(token)
        # Before bind, because bind makes the file with this mode: at no instant may others connect.
        os.fchmod(listener.fileno(), 0o600)
        listener.bind(_address(folder))
        listener.listen(16)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise InputError(f"{directory}: cannot be written to: {error.strerror}") from error
    return listener


def remove_files(folder: int) -> None:
    """Remove socket and token, where they are there."""
    for name in (SOCKET_NAME, TOKEN_NAME):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=folder)


def peer_user(connection: socket.socket) -> int:
    """The user id of the process at the other end, as the kernel knows it."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, user, _ = struct.unpack("3i", credentials)
    return int(user)


@contextlib.contextmanager
def opened(directory: Path) -> Iterator[int]:
    """The directory's descriptor, closed at the end.

    Raises:
        InputError: it cannot be opened.
    """
    folder = _open_directory(directory)
    try:
        yield folder
    finally:
        os.close(folder)


def read_token(folder: int, directory: Path) -> str:
    """The token of the run that lives in the directory.

    Raises:
        InputError: no run lives there.
        Refused: it belongs to another user.
    """
    try:
        file = os.open(TOKEN_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
    except PermissionError:
        raise _another_users(directory) from None
    except OSError:
        raise _nobody(directory) from None
    with open(file, encoding="ascii", errors="replace") as stream:
        return stream.read(1024)


@contextlib.contextmanager
def connected(folder: int, directory: Path, timeout_seconds: float) -> Iterator[socket.socket]:
    """A connection to the run that lives in the directory.

    Raises:
        InputError: no run lives there.
        Refused: it belongs to another user.
        Fault: it does not answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(timeout_seconds)
        try:
            connection.connect(_address(folder))
        except PermissionError:
            raise _another_users(directory) from None
        except (FileNotFoundError, ConnectionRefusedError):
            raise _nobody(directory) from None
        except OSError as error:
            raise Fault(f"the run in {directory} does not answer: {error}") from error
        yield connection


def _address(folder: int) -> str:
    return f"/proc/self/fd/{folder}/{SOCKET_NAME}"


def _open_directory(directory: Path) -> int:
    try:
        return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"{directory}: cannot be opened: {error.strerror}") from error


def _nobody(directory: Path) -> InputError:
    return InputError(f"{directory}: no run lives there", hint="`lepton runs list` shows the runs")


def _another_users(directory: Path) -> Refused:
    return Refused(f"{directory}: the run belongs to another user")
