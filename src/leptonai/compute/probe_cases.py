"""Which kernels a probe times: the sizes at which training uses them, whatever the framework."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

CaseKind = Literal[
    "matmul", "batched_matmul", "convolution", "elementwise", "reduction", "copy", "gather",
    "update_momentum", "update_adam",
]  # fmt: skip
Layout = Literal["nn", "nt", "tn"]
"""How the factors of a matrix product lie: ``n`` as the product reads them, ``t`` transposed."""

# Rows of a batch (examples, or examples x positions), and the widths of layers that are usual on CPUs.
BATCHES = (32, 128, 512)
LAYERS = (
    (64, 64), (256, 64), (64, 256), (256, 256), (256, 1024), (1024, 256), (1024, 1024), (1024, 2048), (2048, 2048),
    (784, 256), (256, 10),
)  # fmt: skip
SQUARES = (32, 64, 128, 256, 512, 1024, 2048)
# Attention: batch x heads, then positions and the width of a head.
ATTENTION = ((128, 32, 16, 32), (128, 64, 32, 64), (64, 128, 64, 128), (16, 256, 64, 256))
# Input channels, output channels, side of the kernel, side of the output, groups.
CONVOLUTIONS = (
    (1, 16, 3, 28, 1), (1, 32, 5, 28, 1), (3, 32, 3, 32, 1), (16, 32, 3, 14, 1), (32, 32, 3, 28, 1),
    (32, 64, 3, 14, 1), (32, 64, 5, 14, 1), (64, 64, 3, 16, 1), (64, 64, 1, 16, 1), (64, 64, 3, 16, 64),
    (64, 128, 3, 8, 1), (128, 128, 3, 8, 1), (256, 256, 3, 7, 1),
)  # fmt: skip
IMAGES = (32, 128)
ELEMENTS = (256, 4096, 32768, 262_144, 2_097_152)
GATHERS = ((1024, 64), (8192, 128))  # rows fetched, their width
UPDATES = ((1, 1024), (10, 10_240), (10, 1_024_000), (1, 4_096_000))  # tensors, elements of all together

QUICK_BATCHES = (128,)
QUICK_LAYERS = ((64, 256), (256, 256), (1024, 1024))
QUICK_SQUARES = (64, 512)
QUICK_CONVOLUTIONS = CONVOLUTIONS[3:6]
QUICK_ELEMENTS = (256, 32768, 2_097_152)
BFLOAT16_LAYERS = ((256, 256), (1024, 1024))
BFLOAT16_SQUARES = (64, 256, 1024)


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelCase:
    """One kernel at one size.

    Args:
        kind: which kernel.
        dims: its size, as :class:`~leptonai.compute.measured.RateSample` writes it. A ``batched_matmul`` has
            (batch, m, k, n), a ``gather`` (rows, width), an update (tensors, elements of all together), the
            others (elements).
        backward: whether it is a gradient: of a matrix product one of the two, under its own m, k, n; of a
            convolution both together, under the forward's dims (for 3 input channels or fewer that of the
            weights alone, as such an input is data).
        layout: of a matrix product.
        precision: ``float32`` or ``bfloat16``.
    """

    kind: CaseKind
    dims: tuple[int, ...]
    backward: bool = False
    layout: Layout = "nn"
    precision: str = "float32"

    @property
    def family(self) -> tuple[str, str, bool]:
        """Kind, precision and direction: cases that differ in size alone share one."""
        return self.kind, self.precision, self.backward

    @property
    def flops(self) -> float:
        """Floating-point operations; of an elementwise kernel one an element."""
        if self.kind in ("matmul", "batched_matmul"):
            return 2.0 * math.prod(self.dims)
        if self.kind == "convolution":
            images, channels, outputs, kernel, positions, groups = self.dims
            one = 2.0 * images * channels * outputs * kernel * positions / groups
            return one * (1 if not self.backward else 1 if channels <= DATA_CHANNELS else 2)
        return float(self.dims[-1])


NUM_FIRST = 3
"""Of each family timed before any other: middle, smallest and largest show the curve."""
DATA_CHANNELS = 3
"""An input of so few channels is data, which needs no gradient."""
MOST_FLOPS = {"convolution": 1.2e9, "matmul": 2.5e9}
"""Of one call: above it rates hardly change, and a probe has no time. The squares show the limit all the same."""


def kernel_cases(*, quick: bool = False) -> tuple[KernelCase, ...]:
    """All cases, each once, in the order in which a probe times them: should time run out, detail is lost first.

    The first :func:`num_families` of them are one of each family, of middle size; their smallest and largest
    follow. After these, each family is halved again and again, all families in step.
    """
    families: dict[tuple[object, ...], dict[tuple[int, ...], KernelCase]] = {}
    for case in (*_products(quick), *_convolutions(quick), *_passes_over_memory(quick)):
        if case.flops > MOST_FLOPS.get(case.kind, math.inf) and len(set(case.dims)) > 1:
            continue
        families.setdefault(case.family, {}).setdefault(case.dims, case)
    placed: list[tuple[float, int, KernelCase]] = []
    for number, family in enumerate(families.values()):
        cases = sorted(family.values(), key=lambda case: case.flops)
        for rank, place in enumerate(halving(len(cases))):
            # Middle, smallest and largest of all, then in proportion, so that all families end together.
            turn = float(rank - NUM_FIRST) if rank < NUM_FIRST else rank / len(cases)
            placed.append((turn, number, cases[place]))
    return tuple(case for _, _, case in sorted(placed, key=lambda each: each[:2]))


def key_of(kind: str, precision: str, backward: bool, dims: tuple[int, ...]) -> str:
    """A name for a case.

    >>> key_of("copy", "float32", False, (256,))
    'copy 256 float32 forward'
    """
    return f"{kind} {'x'.join(map(str, dims))} {precision} {'backward' if backward else 'forward'}"


def num_families(cases: tuple[KernelCase, ...]) -> int:
    """Kinds, precisions and directions among the cases.

    >>> num_families(layer_products(32, 64, 10))
    2
    """
    return len({case.family for case in cases})


def halving(length: int) -> list[int]:
    """Places in a list: its middle, its ends, then the middle of the widest gap left, each once.

    >>> halving(9)
    [4, 0, 8, 2, 6, 1, 3, 5, 7]
    """
    if length < NUM_FIRST:
        return list(range(length))
    places = [length // 2, 0, length - 1]
    gaps = [(0, length // 2), (length // 2, length - 1)]
    while gaps:
        gaps.sort(key=lambda gap: gap[0] - gap[1])
        first, last = gaps.pop(0)
        if last - first > 1:
            middle = (first + last) // 2
            places.append(middle)
            gaps += [(first, middle), (middle, last)]
    return places


def layer_products(
    rows: int, inputs: int, outputs: int, precision: str = "float32"
) -> tuple[KernelCase, ...]:
    """The three products of a dense layer: its output, and the gradients of its input and weights.

    >>> [case.dims for case in layer_products(32, 64, 10)]
    [(32, 64, 10), (32, 10, 64), (10, 32, 64)]
    """
    return (
        KernelCase(kind="matmul", dims=(rows, inputs, outputs), layout="nt", precision=precision),
        KernelCase(kind="matmul", dims=(rows, outputs, inputs), backward=True, precision=precision),
        KernelCase(
            kind="matmul", dims=(outputs, rows, inputs), layout="tn", backward=True, precision=precision
        ),
    )


def _products(quick: bool) -> Iterator[KernelCase]:
    for rows in QUICK_BATCHES if quick else BATCHES:
        for inputs, outputs in QUICK_LAYERS if quick else LAYERS:
            yield from layer_products(rows, inputs, outputs)
    for side in QUICK_SQUARES if quick else SQUARES:
        yield KernelCase(kind="matmul", dims=(side, side, side), layout="nt")
    for inputs, outputs in BFLOAT16_LAYERS:
        yield from layer_products(QUICK_BATCHES[0], inputs, outputs, "bfloat16")
    for side in BFLOAT16_SQUARES:
        yield KernelCase(kind="matmul", dims=(side, side, side), layout="nt", precision="bfloat16")
    for dims in ATTENTION[:2] if quick else ATTENTION:
        yield KernelCase(kind="batched_matmul", dims=dims)


def _convolutions(quick: bool) -> Iterator[KernelCase]:
    for images in IMAGES[:1] if quick else IMAGES:
        for channels, outputs, side, width, groups in QUICK_CONVOLUTIONS if quick else CONVOLUTIONS:
            for backward in (False, True):
                dims = (images, channels, outputs, side * side, width * width, groups)
                yield KernelCase(kind="convolution", dims=dims, backward=backward)


def _passes_over_memory(quick: bool) -> Iterator[KernelCase]:
    for elements in QUICK_ELEMENTS if quick else ELEMENTS:
        yield KernelCase(kind="elementwise", dims=(elements,))
        yield KernelCase(kind="reduction", dims=(elements,))
        yield KernelCase(kind="copy", dims=(elements,))
    yield from (KernelCase(kind="gather", dims=dims) for dims in GATHERS)
    for dims in UPDATES[1:2] if quick else UPDATES:
        yield KernelCase(kind="update_momentum", dims=dims)
        yield KernelCase(kind="update_adam", dims=dims)
