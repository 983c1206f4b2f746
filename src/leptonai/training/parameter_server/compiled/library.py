"""``kernels.c`` as a loaded library."""

from __future__ import annotations

import ctypes
from pathlib import Path

from leptonai.core.compiled import load_compiled

SOURCE = Path(__file__).with_name("kernels.c")


def library() -> ctypes.CDLL | None:
    """The library, compiled now if need be; None: there is no compiler, or it cannot be trusted or loaded."""
    return load_compiled(SOURCE, _declare)


def _declare(found: ctypes.CDLL) -> None:
    address, count = ctypes.c_void_p, ctypes.c_uint64
    found.lepton_step.argtypes = [
        ctypes.c_int, address, address, address, address, count, address,
        address, address, count, count, count, ctypes.POINTER(ctypes.c_int64),
    ]  # fmt: skip
    found.lepton_all_finite.argtypes = [address, count]
    found.lepton_copy_checked.argtypes = [address, address, count, ctypes.c_int]
    for function in (found.lepton_step, found.lepton_all_finite, found.lepton_copy_checked):
        function.restype = ctypes.c_int
