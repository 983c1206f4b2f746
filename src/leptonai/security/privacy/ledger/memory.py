"""How far this machine has seen the ledger come: a small file that shows when the database was put back.

It is written after a transaction, without waiting for the disk, so it may lag behind but never runs ahead.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path

from leptonai.core.errors import Fault, InputError

_LINE_BYTES = 20 + 1 + 64 + 1


class Memory:
    """The file of one key's one ledger.

    Args:
        path: of the file, mode 0600; it need not exist.

    Raises:
        InputError: it cannot be read.
        Fault: it holds something else.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise InputError(f"{path}: cannot be opened: {error.strerror}") from error
        with os.fdopen(descriptor, "rb") as file:
            self.length, self._mac = self._parse(file.read(_LINE_BYTES + 1))

    def agrees(self, number: int, mac: str) -> bool:
        """Whether row ``number`` is the one remembered, if it is that row."""
        return number != self.length or mac == self._mac

    def advance(self, length: int, mac: str) -> None:
        """Remember a ledger of ``length`` rows whose last seal is ``mac``, unless it came further already."""
        if length <= self.length:
            return
        # The entry is in the ledger already; where this cannot be written, less is remembered.
        with contextlib.suppress(OSError):
            self._write(length, mac)
        self.length, self._mac = length, mac

    def _write(self, length: int, mac: str) -> None:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            known, _ = self._parse(os.pread(descriptor, _LINE_BYTES + 1, 0))
            if length > known:
                os.pwrite(descriptor, f"{length:020d} {mac}\n".encode(), 0)
        finally:
            os.close(descriptor)

    def _parse(self, data: bytes) -> tuple[int, str]:
        if not data:
            return 0, ""
        words = data.decode("ascii", "replace").split()
        if len(data) != _LINE_BYTES or len(words) != 2 or not words[0].isdigit():
            raise Fault(
                f"{self.path}: is damaged", hint="remove it, then run: lepton privacy ledger --verify"
            )
        return int(words[0]), words[1]
