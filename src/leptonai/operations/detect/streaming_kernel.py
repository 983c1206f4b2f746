"""``streaming.c`` as a function over the detector's record; None where there is no compiler."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leptonai.core.compiled import load_compiled
from leptonai.operations.detect.streaming_state import CHANNELS, STATE

SOURCE = Path(__file__).with_name("streaming.c")

Floats = NDArray[np.float64]
Take = Callable[[NDArray[np.void], Floats, Floats], Floats]
"""Takes points into a record of shape (1,) and returns the evidence of every channel, (points, channels)."""


def library() -> ctypes.CDLL | None:
    """The library, compiled now if need be; None: there is no compiler, or it cannot be trusted or loaded."""
    return load_compiled(SOURCE, _declare)


def _declare(found: ctypes.CDLL) -> None:
    found.lepton_detector_state_bytes.restype = ctypes.c_int64
    if found.lepton_detector_state_bytes() != STATE.itemsize:
        raise AttributeError("the library's record is not this program's")
    address, one = ctypes.c_void_p, ctypes.c_double
    found.lepton_detector_take.argtypes = [address, ctypes.c_int64, address, address, address]
    found.lepton_detector_take.restype = None
    found.lepton_detector_take_one.argtypes = [address, one, one, address]
    found.lepton_detector_take_one.restype = one


def compiled_take(found: ctypes.CDLL) -> Take:
    """The library's ``take``, with the signature of the reference's."""

    def take(state: NDArray[np.void], values: Floats, seconds: Floats) -> Floats:
        values, seconds = np.ascontiguousarray(values), np.ascontiguousarray(seconds)
        evidence = np.empty((len(values), len(CHANNELS)))
        found.lepton_detector_take(
            state.ctypes.data, len(values), values.ctypes.data, seconds.ctypes.data, evidence.ctypes.data
        )
        return evidence

    return take
