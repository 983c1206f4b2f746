"""Normal numbers of float32 from a cryptographic keystream: Box-Muller in C, or in numpy where there is no compiler.

Both turn the same bits into the same numbers, up to rounding. Each pair of normals takes 64 bits for the radius and
32 for the angle, see ``compiled/normals.c``. Being floats, they can betray low bits of what they are added to (Mironov
2012); where that matters, :mod:`leptonai.security.privacy.noise.discrete` adds integers.
"""

from __future__ import annotations

import ctypes
import math
import sys

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.security.privacy.noise.compiled.library import normals_library
from leptonai.security.privacy.noise.keystream import BLOCK_BYTES, NORMAL, Keystream

_PAIR_BYTES = 12
# Normals made at once: their 96 KiB of random bits, the zeros those come from and the target share a core's L2.
CHUNK = 2 * BLOCK_BYTES // _PAIR_BYTES


class NormalSource:
    """Independent standard normals that nobody can predict; for one thread at a time.

    A fork continues as :class:`~leptonai.security.privacy.noise.keystream.Keystream` says.

    Args:
        key: 32 secret bytes, which decide all numbers; None (for all but tests): fresh and stored nowhere.
        compiled: False leaves the C library aside.

    Raises:
        InputError: the key is not 32 bytes.

    >>> NormalSource().normals(3).shape
    (3,)
    """

    __slots__ = ("_keystream", "_library", "_words")

    def __init__(self, key: bytes | None = None, *, compiled: bool = True) -> None:
        self._keystream = Keystream(key, purpose=NORMAL)
        self._library = normals_library() if compiled and sys.byteorder == "little" else None
        self._words = np.empty(0, dtype=np.dtype("<u4"))

    @property
    def kernel(self) -> str:
        """Who does the arithmetic: ``compiled`` or ``numpy``."""
        return "numpy" if self._library is None else "compiled"

    def add(self, target: NDArray[np.float32], scale: float) -> None:
        """Add ``scale`` (>= 0, finite) times a fresh normal to each element of ``target``, in place.

        Raises:
            InputError: the target is no writable C-contiguous float32 array, or the scale lies outside its range.
        """
        self._apply(target, scale, keep=True)

    def fill(self, target: NDArray[np.float32], scale: float = 1.0) -> None:
        """Overwrite ``target`` with fresh normals times ``scale``; otherwise as :meth:`add`."""
        self._apply(target, scale, keep=False)

    def normals(self, count: int) -> NDArray[np.float32]:
        """``count`` fresh standard normals."""
        drawn = np.empty(count, dtype=np.float32)
        self.fill(drawn)
        return drawn

    def _apply(self, target: NDArray[np.float32], scale: float, *, keep: bool) -> None:
        if target.dtype != np.float32 or not target.flags.c_contiguous or not target.flags.writeable:
            raise InputError(f"expected a writable C-contiguous float32 array, found {target.dtype}")
        if not (0 <= scale < math.inf):
            raise InputError(f"expected a finite scale >= 0, found {scale}")
        flat = target.reshape(-1)
        for start in range(0, flat.size, CHUNK):
            part = flat[start : start + CHUNK]
            words = self._random_words(3 * ((part.size + 1) // 2))
            if self._library is not None:
                _compiled_into(self._library, words, part, scale, keep=keep)
            elif keep:
                part += np.float32(scale) * box_muller(words, part.size)
            else:
                part[:] = np.float32(scale) * box_muller(words, part.size)

    def _random_words(self, count: int) -> NDArray[np.uint32]:
        if self._words.size < count:
            self._words = np.empty(count, dtype=np.dtype("<u4"))
        words = self._words[:count]
        self._keystream.fill(words)
        return words


def _compiled_into(
    library: ctypes.CDLL, words: NDArray[np.uint32], part: NDArray[np.float32], scale: float, *, keep: bool
) -> None:
    function = library.lepton_add_normals if keep else library.lepton_fill_normals
    function(words.ctypes.data, part.size, scale, part.ctypes.data)


def box_muller(words: NDArray[np.uint32], count: int) -> NDArray[np.float32]:
    """The ``count`` normals that ``3 * ceil(count / 2)`` random words decide, computed in float64.

    ``words`` is three planes: high and low half of the radius' 64 bits, then the angle. The numbers are two: cosines,
    then sines.
    """
    high, low, turn = words.reshape(3, -1).astype(np.float64)
    u = (high * 2.0**32 + low + 0.5) * 2.0**-64
    rest = ((2.0**32 - 1 - high) * 2.0**32 + (2.0**32 - 1 - low) + 0.5) * 2.0**-64
    radius = np.sqrt(-2.0 * np.where(u < 0.5, np.log(u), np.log1p(-np.minimum(rest, 0.75))))
    angle = (turn + 0.5) * (2.0 * math.pi / 2.0**32)
    both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return both[:count].astype(np.float32)
