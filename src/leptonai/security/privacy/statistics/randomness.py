"""The secret randomness of one release: a key for choices among rows, and integer noise."""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

KEY_BYTES = 32


class NoiseSource(Protocol):
    """Where integer noise comes from."""

    def laplace(self, count: int, *, scale: Fraction) -> NDArray[np.int64]:
        """``count`` integers x with probability proportional to exp(-|x| / scale)."""

    def gaussian(self, count: int, *, sigma_squared: Fraction) -> NDArray[np.int64]:
        """``count`` integers x with probability proportional to exp(-x^2 / (2 sigma_squared))."""


class Chooser:
    """Uniform whole numbers from keyed BLAKE2b in counter mode, a cryptographic stream; never rounded.

    Args:
        key: 32 secret bytes.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._used = 0

    def __repr__(self) -> str:
        return "Chooser(...)"

    def below(self, limit: int) -> int:
        """A whole number in [0, limit), every one equally likely; ``limit`` >= 1."""
        bits = (limit - 1).bit_length()
        while True:
            found = int.from_bytes(self._take((bits + 7) // 8)) >> (-bits % 8)
            if found < limit:
                return found

    def _take(self, num_bytes: int) -> bytes:
        taken = b""
        while len(taken) < num_bytes:
            counter = self._used.to_bytes(8)
            taken += hashlib.blake2b(counter, key=self._key, person=b"choose").digest()
            self._used += 1
        return taken[:num_bytes]


@dataclass(frozen=True, slots=True)
class Randomness:
    """What one release draws from; used once.

    Args:
        noise: integer noise.
        key: 32 secret bytes, for which rows of a unit are kept and for choices.
    """

    noise: NoiseSource
    key: bytes = field(default_factory=lambda: secrets.token_bytes(KEY_BYTES), repr=False)

    def sampling_key(self, query: int) -> bytes:
        """The key that says which rows of a unit count in the query of that number."""
        return hashlib.blake2b(b"rows %d" % query, key=self.key, digest_size=KEY_BYTES).digest()

    def chooser(self) -> Chooser:
        """The stream of choices; call it once a release."""
        return Chooser(hashlib.blake2b(b"choices", key=self.key, digest_size=KEY_BYTES).digest())
