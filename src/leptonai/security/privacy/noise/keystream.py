"""Random bytes nobody can predict: the keystream of AES-256 in counter mode.

Without the key, telling these bytes from true randomness is as hard as breaking AES-256. A statistical generator
(Mersenne Twister, Philox, PCG) makes no such promise: who sees some of its output can compute the rest, and with
it take the noise off.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from leptonai.core.errors import Fault, InputError

KEY_BYTES = 32
# What one key is used for: each use has counters of its own, so that no two ever share a byte.
NORMAL, DISCRETE, SAMPLING, SUBSETS, ORDER = range(5)
# Bytes drawn at once: with the zeros they are made from and the numbers they become, within a core's cache.
BLOCK_BYTES = 98_304
_LAST_STEP = 2**48 - 1
_ZEROS = memoryview(bytes(BLOCK_BYTES))


class Keystream:
    """A stream of random bytes, never twice the same ones.

    Not for several threads at once: each takes its own. A process forked from this one continues with a fresh key;
    where a key was given there is none to continue with, and drawing is refused. It cannot be copied or pickled.

    Args:
        key: 32 secret bytes, which decide all that follows; None: drawn from the operating system and kept
            nowhere but in the cipher's state.
        purpose: which of the key's independent streams, 0 to 255.
        step: which part of that stream, 0 to 2^48 - 1; parts do not overlap within 2^72 bytes.

    Raises:
        InputError: the key is not 32 bytes, or a number lies outside its range.

    >>> bytes(Keystream(bytes(32)).words(1)).hex()
    'dc95c078a2408989'
    """

    __slots__ = ("_cipher", "_fresh", "_process")

    def __init__(self, key: bytes | None = None, *, purpose: int = NORMAL, step: int = 0) -> None:
        self._fresh = key is None
        self._process = os.getpid()
        self._cipher = _cipher(os.urandom(KEY_BYTES) if key is None else key, purpose, step)

    def fill(self, target: NDArray[Any]) -> None:
        """Overwrite ``target``, of any fixed-size type, with the stream's next bytes.

        Raises:
            InputError: the target is not C-contiguous.
            Fault: the process was forked from the one that was given the key.
        """
        if not target.flags.c_contiguous:
            raise InputError("expected a C-contiguous array")
        if self._process != os.getpid():
            self._leave_parent()
        flat = target.reshape(-1).view(np.uint8)
        for start in range(0, flat.size, BLOCK_BYTES):
            part = flat[start : start + BLOCK_BYTES]
            self._cipher.update_into(_ZEROS[: part.size], part)

    def words(self, count: int) -> NDArray[np.uint64]:
        """The next ``count`` 64-bit words, each uniform."""
        drawn = np.empty(count, dtype=np.dtype("<u8"))
        self.fill(drawn)
        return drawn

    def _leave_parent(self) -> None:
        """Take a fresh key in a forked process, which would else repeat its parent's bytes."""
        if not self._fresh:
            raise Fault(
                "a keystream with a given key was carried over a fork, where it would repeat its parent's noise",
                hint="give each process a source of its own",
            )
        self._cipher = _cipher(os.urandom(KEY_BYTES), NORMAL, 0)
        self._process = os.getpid()

    def __reduce__(self) -> Any:
        raise TypeError("a keystream is secret and may exist once: it cannot be copied or pickled")


def _cipher(key: bytes, purpose: int, step: int) -> Any:
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        raise InputError(f"expected a key of {KEY_BYTES} bytes", hint="os.urandom(32)")
    if not 0 <= purpose < 256 or not 0 <= step <= _LAST_STEP:
        raise InputError(f"expected purpose in 0..255 and step in 0..{_LAST_STEP}, found {purpose}, {step}")
    first = bytes([purpose]) + step.to_bytes(6, "big") + bytes(9)  # the low 9 bytes count blocks of 16 bytes
    return Cipher(AES(key), CTR(first)).encryptor()
