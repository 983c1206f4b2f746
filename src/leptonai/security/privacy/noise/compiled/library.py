"""The C files of this folder as loaded libraries."""

from __future__ import annotations

import ctypes
from pathlib import Path

from leptonai.core.compiled import load_compiled

NORMALS = Path(__file__).with_name("normals.c")
DISCRETE = Path(__file__).with_name("discrete.c")


def normals_library() -> ctypes.CDLL | None:
    """``normals.c``, compiled now if need be; None: there is no compiler, or it cannot be trusted or loaded."""
    return load_compiled(NORMALS, _declare_normals)


def _declare_normals(found: ctypes.CDLL) -> None:
    address = ctypes.c_void_p
    for function in (found.lepton_add_normals, found.lepton_fill_normals):
        function.argtypes = [address, ctypes.c_uint64, ctypes.c_float, address]
        function.restype = None


REFILL = ctypes.CFUNCTYPE(ctypes.c_int)
RARE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_int64))


def discrete_library() -> ctypes.CDLL | None:
    """``discrete.c``, likewise."""
    return load_compiled(DISCRETE, _declare_discrete)


def _declare_discrete(found: ctypes.CDLL) -> None:
    address, word, small = ctypes.c_void_p, ctypes.c_uint64, ctypes.c_int
    found.lepton_discrete.argtypes = [
        address, address, address, ctypes.c_uint32, small, small, small, small, word, word,
        address, word, REFILL, RARE, address, word,
    ]  # fmt: skip
    found.lepton_discrete.restype = small
    found.lepton_exp_coin.argtypes = [word, word, address, word, REFILL]
    found.lepton_exp_coin.restype = small
