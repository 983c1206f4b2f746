"""What a row begins with: a pure function of seed, table, id and column, whoever creates it and when."""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

from leptonai.training.parameter_server.tables.spec import Table

_GOLDEN = np.uint64(0x9E37_79B9_7F4A_7C15)
# Rows hashed at a time: the working arrays stay in the CPU's cache.
_BLOCK_NUMBERS = 1 << 15


def initial_rows(table: Table, ids: NDArray[np.int64], out: NDArray[np.float32]) -> None:
    """Write the first values of the rows ``ids`` (N,) into ``out`` (N, width).

    The numbers come from SplitMix64's mixing function over a counter, so they are those of no particular order.
    Normal numbers go through the logarithm and cosine of the platform's C library, whose last bit may differ
    between machines; uniform ones are the same everywhere.

    Source: Steele, Lea & Flood 2014 (SplitMix64); Box & Muller 1958.
    """
    if table.init_scale == 0.0:
        out[...] = 0.0
        return
    base = int.from_bytes(hashlib.sha256(f"{table.seed}/{table.name}".encode()).digest()[:8], "little")
    block = max(1, _BLOCK_NUMBERS // table.width)
    columns = np.arange(table.width, dtype=np.uint64)
    for start in range(0, len(ids), block):
        rows = _mixed(ids[start : start + block].astype(np.uint64) * _GOLDEN ^ np.uint64(base))
        words = _mixed(rows[:, None] + columns * _GOLDEN)
        target = out[start : start + block]
        if table.init == "uniform":
            # 24 bits: every value is a float32 without rounding.
            target[...] = (words >> np.uint64(40)).astype(np.float32)
            target *= np.float32(2.0**-23)
            target -= np.float32(1.0)
            target *= np.float32(table.init_scale)
        else:
            target[...] = _normal(words) * table.init_scale


def _normal(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    first = ((words >> np.uint64(32)).astype(np.float64) + 0.5) * 2.0**-32
    second = (words & np.uint64(0xFFFF_FFFF)).astype(np.float64) * 2.0**-32
    values: NDArray[np.float64] = np.sqrt(-2.0 * np.log(first)) * np.cos(2.0 * np.pi * second)
    return values


def _mixed(words: NDArray[np.uint64]) -> NDArray[np.uint64]:
    words = words + _GOLDEN
    words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58_476D_1CE4_E5B9)
    words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D0_49BB_1331_11EB)
    mixed: NDArray[np.uint64] = words ^ (words >> np.uint64(31))
    return mixed
