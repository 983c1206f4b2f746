"""What a timed kernel did, from its kind and dims alone: FLOPs, and bytes moved."""

from __future__ import annotations

import math
from collections.abc import Sequence

from leptonai.compute.probe_cases import DATA_CHANNELS
from leptonai.core.errors import InputError

FLOAT_BYTES = 4
INDEX_BYTES = 8

PRODUCT_DIMS = {"matmul": 3, "batched_matmul": 4, "convolution": 6}
"""Kinds whose speed depends on every one of their dims, and how many they have."""

TOUCHES = {"elementwise": 3, "reduction": 1, "copy": 2}
"""Tensors as long as the case that a probe's kernel reads or writes: two summands and a sum; one; there and back."""

UPDATE_TOUCHES = {"update_momentum": 5, "update_adam": 7}
"""Passes over memory as long as the parameters: momentum reads parameter, gradient and state and writes two of
them; Adam has one state more to read and to write."""


def kernel_flops(kind: str, dims: Sequence[float], *, backward: bool = False) -> float:
    """Floating-point operations of a product or convolution; a multiply-add counts two.

    A convolution's backward is both gradients, but for so few input channels that they are data: see
    :data:`~leptonai.compute.probe_cases.DATA_CHANNELS`.

    Raises:
        InputError: the kind has no FLOPs, or other dims.

    >>> kernel_flops("matmul", (2, 3, 4))
    48.0
    """
    if len(dims) != PRODUCT_DIMS.get(kind):
        raise InputError(
            f"kernel {kind!r}: expected {PRODUCT_DIMS.get(kind, 'no')} dims, found {len(dims)}",
            hint=f"kinds with dims: {', '.join(PRODUCT_DIMS)}",
        )
    if kind != "convolution":
        return 2.0 * math.prod(dims)
    one = 2.0 * math.prod(dims[:5]) / dims[5]
    return one * (2 if backward and dims[1] > DATA_CHANNELS else 1)


def moved_bytes(kind: str, dims: Sequence[float]) -> float:
    """Bytes that a probe's kernel over memory reads and writes, in float32.

    Raises:
        InputError: the kind is not one over memory.

    >>> moved_bytes("copy", (10,)), moved_bytes("gather", (2, 10))
    (80.0, 176.0)
    """
    if kind == "gather":
        rows, width = dims
        return rows * (2.0 * FLOAT_BYTES * width + INDEX_BYTES)
    if kind in UPDATE_TOUCHES:
        return UPDATE_TOUCHES[kind] * FLOAT_BYTES * float(dims[1])
    if kind not in TOUCHES:
        raise InputError(f"kernel {kind!r} is not one that passes over memory")
    return TOUCHES[kind] * FLOAT_BYTES * float(dims[0])
