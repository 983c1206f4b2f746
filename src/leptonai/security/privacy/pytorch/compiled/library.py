"""``kernels.c`` as a loaded library."""

from __future__ import annotations

import ctypes
from pathlib import Path

from leptonai.core.compiled import load_compiled

SOURCE = Path(__file__).with_name("kernels.c")

_Three = ctypes.c_int64 * 3


class Shape(ctypes.Structure):
    """A convolution's shape as the C functions take it; the fields are explained there."""

    _fields_ = (
        ("in_channels", ctypes.c_int64), ("out_channels", ctypes.c_int64), ("groups", ctypes.c_int64),
        ("inner", _Three), ("outer", _Three),
        ("kernel", _Three), ("stride", _Three), ("padding", _Three), ("dilation", _Three),
        ("plane", _Three), ("plane_floats", ctypes.c_int64), ("grad_floats", ctypes.c_int64),
        ("bias", ctypes.c_int64),
    )  # fmt: skip


def library() -> ctypes.CDLL | None:
    """The library, compiled now if need be; None: there is no compiler, or it cannot be trusted or loaded."""
    return load_compiled(SOURCE, _declare)


def _declare(found: ctypes.CDLL) -> None:
    shape, address, count, word = ctypes.POINTER(Shape), ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    found.lepton_convolution_scratch.argtypes = [shape, word]
    found.lepton_convolution_scratch.restype = count
    found.lepton_convolution_each.argtypes = [shape, count, *[address] * 5]
    found.lepton_convolution_sum.argtypes = [shape, count, *[address] * 5]
    found.lepton_convolution_gram.argtypes = [shape, count, *[address] * 5]
    found.lepton_sequence_gram.argtypes = [count, count, count, count, ctypes.c_float, *[address] * 5]
    found.lepton_sequence_scratch.argtypes = [count, count, count]
    found.lepton_sequence_scratch.restype = count
    for function in (
        found.lepton_convolution_each, found.lepton_convolution_sum,
        found.lepton_convolution_gram, found.lepton_sequence_gram,
    ):  # fmt: skip
        function.restype = None
