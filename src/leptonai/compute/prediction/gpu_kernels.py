"""How long a device takes for the kernels of one transformer layer: matrix products, attention, element-wise work.

All functions take arrays. Letters: b micro-batch, s sequence, h hidden, a heads, t tensor degree, M = b s tokens,
V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from leptonai.compute.prediction.calibration import Calibration
from leptonai.compute.prediction.layouts import Floats, Ints
from leptonai.compute.prediction.machine import Accelerator
from leptonai.compute.transformer import Transformer

ELEMENT_BYTES = 2
"""Of an activation or weight in half precision."""
REPLICATED_PASSES = 11
"""Times normalisations, dropouts and residual sums read or write an M x h tensor; divided by sequence parallelism."""
DIVIDED_PASSES = 14
"""Times biases, GeLU and reshapes of heads do, in units of M x h; divided by the tensor degree."""
BACKWARD_FACTOR = 2.0
"""A product has two gradients, each as costly as itself; other traffic doubles likewise (2104.04473, appendix)."""
TILES = ((256, 128, 1.0), (128, 128, 0.92), (128, 64, 0.75), (64, 64, 0.6))
"""Rows, columns and relative rate of the tiles that cuBLAS and CUTLASS choose from (CUTLASS profiler, A100)."""
TILED_SHARE = 0.5
"""Of a product's arithmetic charged by whole waves of tiles: split-K and stream-K hide part of the last wave."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a device reaches, not its data sheet's peak.

    Args:
        matmul_flops: FLOP/s of large products, > 0.
        memory_bytes_per_second: of streaming kernels, > 0.
        kernel_seconds: start of a kernel.
        score_bytes: forward memory traffic of an attention score.
        num_multiprocessors: for counting waves of tiles; 0: they are not counted.
    """

    matmul_flops: float
    memory_bytes_per_second: float
    kernel_seconds: float
    score_bytes: float
    num_multiprocessors: int = 0

    @classmethod
    def of(cls, device: Accelerator, calibration: Calibration) -> Rates:
        """Peak and bandwidth of the data sheet, times the calibrated shares."""
        return cls(
            matmul_flops=device.peak_flops * calibration.matmul_efficiency,
            memory_bytes_per_second=device.memory_bandwidth_bytes_per_second * calibration.memory_efficiency,
            kernel_seconds=calibration.kernel_seconds,
            score_bytes=calibration.score_bytes,
            num_multiprocessors=calibration.num_multiprocessors,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerKernels:
    """Forward seconds of one layer and one micro-batch on one device.

    Args:
        dense: products with weights.
        attention: scores, softmax and weighted values: what selective recomputation runs again.
        elementwise: everything else.
    """

    dense: Floats
    attention: Floats
    elementwise: Floats

    @property
    def forward(self) -> Floats:
        """All of it."""
        return self.dense + self.attention + self.elementwise


def matmul_seconds(
    rates: Rates, m: Floats | float, k: Floats | float, n: Floats | float, count: Floats | float = 1.0
) -> Floats:
    """Time of ``count`` products of (m, k) by (k, n) in one call: the slower of arithmetic and memory.

    Source: Williams, Waterman & Patterson 2009, "Roofline"; waves of tiles: NVIDIA, "Matrix Multiplication Background".
    """
    flops_seconds = 2.0 * m * k * n * count / rates.matmul_flops
    if rates.num_multiprocessors:
        waved = flops_seconds * _wave_factor(rates.num_multiprocessors, m, n, count)
        flops_seconds = (1 - TILED_SHARE) * flops_seconds + TILED_SHARE * waved
    bytes_moved = ELEMENT_BYTES * (m * k + k * n + m * n) * count
    seconds = np.maximum(flops_seconds, bytes_moved / rates.memory_bytes_per_second)
    return np.asarray(seconds + rates.kernel_seconds)


def layer_kernels(
    model: Transformer,
    rates: Rates,
    *,
    tensor: Floats,
    micro_batch: Floats,
    sequence_parallel: Ints,
    fused_attention: bool = False,
) -> LayerKernels:
    """Kernels of one layer's forward pass.

    Args:
        model: sizes of the layer.
        rates: what the device reaches.
        tensor: devices that share the layer.
        micro_batch: examples.
        sequence_parallel: whether normalisations and dropouts are divided too.
        fused_attention: whether scores stay on the chip (FlashAttention, 2205.14135), so they cost no traffic.

    Source: Shoeybi et al. 2019 (1909.08053), section 3, for the products and how they are divided.
    """
    h, s = float(model.hidden), float(model.sequence)
    tokens = micro_batch * s
    width = model.width / tensor
    part = h / tensor
    dense = (
        matmul_seconds(rates, tokens, h, 3 * part)
        + matmul_seconds(rates, tokens, part, h)
        + matmul_seconds(rates, tokens, h, width)
        + matmul_seconds(rates, tokens, width, h)
    )
    heads = micro_batch * model.num_heads / tensor
    head_width = h / model.num_heads
    if fused_attention:
        attention = 2 * (2.0 * heads * s * s * head_width / rates.matmul_flops + rates.kernel_seconds)
    else:
        attention = (
            matmul_seconds(rates, s, head_width, s, heads)
            + matmul_seconds(rates, s, s, head_width, heads)
            + rates.score_bytes * heads * s * s / rates.memory_bytes_per_second
        )
    replicas = np.where(sequence_parallel != 0, tensor, 1.0)
    passes = REPLICATED_PASSES / replicas + DIVIDED_PASSES / tensor
    elementwise = ELEMENT_BYTES * tokens * h * passes / rates.memory_bytes_per_second
    return LayerKernels(dense=dense, attention=np.asarray(attention), elementwise=np.asarray(elementwise))


def head_seconds(
    model: Transformer,
    rates: Rates,
    *,
    tensor: Floats,
    micro_batch: Floats,
    logit_bytes: float,
    undivided_slowdown: float = 1.0,
) -> tuple[Floats, Floats]:
    """Forward and backward seconds of the output embedding and the loss, on the last stage.

    Source: Narayanan et al. 2021 (2104.04473), appendix: 6 M h V operations; the loss is computed in float32.
    """
    tokens = micro_batch * model.sequence
    rows = model.vocabulary / tensor
    product = matmul_seconds(rates, tokens, float(model.hidden), rows)
    product = product * np.where(tensor > 1, 1.0, undivided_slowdown)
    loss = logit_bytes * tokens * rows / rates.memory_bytes_per_second
    forward = product + loss / (1 + BACKWARD_FACTOR)
    return forward, BACKWARD_FACTOR * forward


def _wave_factor(multiprocessors: int, m: Floats | float, n: Floats | float, count: Floats | float) -> Floats:
    """Time over that of perfectly dealt arithmetic, for the best kind of tile."""
    work = m * n * count
    costs = []
    for rows, columns, rate in TILES:
        tiles = np.ceil(m / rows) * np.ceil(n / columns) * count
        waves = np.ceil(tiles / multiprocessors)
        costs.append(waves * (multiprocessors * rows * columns) / (rate * work))
    return np.asarray(np.minimum.reduce(np.broadcast_arrays(*costs)))
