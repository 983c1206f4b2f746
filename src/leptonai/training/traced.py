"""What tracing a model found, whatever framework it is written in: calls at two batch sizes, made affine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from leptonai.compute.workload import LayerWork, Operation, OperationKind
from leptonai.core.errors import InputError

Affine = tuple[float, float]
"""A quantity as (fixed, per example)."""

# Kinds whose FLOPs make up `flops_per_example`: what papers and PyTorch's own counter count.
DENSE: frozenset[OperationKind] = frozenset({"matmul", "convolution", "attention", "recurrence"})
TRACED_SIZES = (2, 4)
"""Batch sizes looked at: batch normalisation needs two examples, and a line needs two points."""


@dataclass(slots=True)
class Call:
    """One call of a kernel, at one batch size.

    Args:
        name: the framework's name for the kernel.
        kind: what sort of kernel it is.
        layer: path of the layer that made it; empty: none.
        backward: whether it was made while gradients were computed.
        flops: floating-point operations.
        bytes_moved: bytes read and written.
        dims: sizes, as in :class:`leptonai.compute.workload.Operation`.
    """

    name: str
    kind: OperationKind
    layer: str
    backward: bool
    flops: float
    bytes_moved: float
    dims: tuple[float, ...] = ()


@dataclass(slots=True)
class Seen:
    """What one layer gave out and kept, at one batch size, in bytes."""

    output_bytes: int = 0
    activation_bytes: int = 0


@dataclass(slots=True)
class Pass:
    """One forward and backward pass.

    Args:
        num_examples: batch size, >= 1.
        calls: in the order they were made.
        layers: by path, in the order they were first entered.
    """

    num_examples: int
    calls: list[Call] = field(default_factory=list)
    layers: dict[str, Seen] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One layer of a traced model.

    Args:
        name: its path in the model.
        kind: the framework's name for it.
        num_parameters: trainable numbers that it and no layer before it holds.
        output_bytes: of its output, (fixed, per example).
        activation_bytes: kept by it for the backward pass, (fixed, per example); a storage that several
            layers keep counts for the first.
    """

    name: str
    kind: str
    num_parameters: int
    output_bytes: Affine = (0.0, 0.0)
    activation_bytes: Affine = (0.0, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """What a forward and a backward pass of a model do.

    Args:
        operations: calls, equal ones together, in the order they first ran.
        layers: in the order they ran.
        activation_bytes: kept from the forward pass for the backward one, (fixed, per example).
        num_parameters: trainable numbers.
        parameter_bytes: bytes of them.
        num_tensors: trainable tensors.
        unused_parameters: names of those that the loss did not reach.
        exact: False when the calls at the two batch sizes differed, so that all quantities are those of the
            larger batch, taken as proportional to its size.
    """

    operations: tuple[Operation, ...]
    layers: tuple[Layer, ...]
    activation_bytes: Affine
    num_parameters: int
    parameter_bytes: int
    num_tensors: int
    unused_parameters: tuple[str, ...] = ()
    exact: bool = True

    def flops(self, layer: str | None = None) -> Affine:
        """FLOPs of products, convolutions, attention and recurrences, of one layer or of all: (fixed, per example)."""
        return total(
            tuple(operation.calls * part for part in operation.flops)
            for operation in self.operations
            if operation.kind in DENSE and layer in (None, operation.layer)
        )

    def layer_works(self, batch: int) -> tuple[LayerWork, ...]:
        """The layers as a workload holds them, fixed costs shared among ``batch`` examples."""
        flops: dict[str, list[tuple[float, ...]]] = {}
        for operation in self.operations:
            if operation.kind in DENSE:
                scaled = tuple(operation.calls * part for part in operation.flops)
                flops.setdefault(operation.layer, []).append(scaled)
        return tuple(
            LayerWork(
                name=layer.name,
                kind=layer.kind,
                num_parameters=layer.num_parameters,
                flops=per_example(total(flops.get(layer.name, ())), batch),
                output_bytes=round(per_example(layer.output_bytes, batch)),
            )
            for layer in self.layers
        )


def per_example(quantity: Affine, batch: int) -> float:
    """An affine quantity as one number an example, its fixed part shared among ``batch`` examples.

    >>> per_example((8.0, 3.0), 4)
    5.0
    """
    return quantity[1] + quantity[0] / batch


def total(quantities: Iterable[Sequence[float]]) -> Affine:
    """Sum of affine quantities."""
    fixed, slope = 0.0, 0.0
    for quantity in quantities:
        fixed += quantity[0]
        slope += quantity[1]
    return fixed, slope


def line(small: tuple[int, float], large: tuple[int, float]) -> Affine:
    """The line through (batch size, quantity) twice.

    >>> line((2, 10.0), (4, 16.0))
    (4.0, 3.0)
    """
    slope = (large[1] - small[1]) / (large[0] - small[0])
    return small[1] - slope * small[0], slope


def same_calls(small: Pass, large: Pass) -> bool:
    """Whether both passes made the same calls, in the same order."""
    return list(small.layers) == list(large.layers) and [
        (call.name, call.kind, call.layer, call.backward, len(call.dims)) for call in small.calls
    ] == [(call.name, call.kind, call.layer, call.backward, len(call.dims)) for call in large.calls]


def proportional(large: Pass) -> Pass:
    """A pass of no examples that makes the calls of ``large`` at no cost, so that costs grow with the batch."""
    calls = [
        replace(call, flops=0.0, bytes_moved=0.0, dims=tuple(0.0 for _ in call.dims)) for call in large.calls
    ]
    return Pass(0, calls, {name: Seen() for name in large.layers})


def operations(small: Pass, large: Pass) -> tuple[Operation, ...]:
    """The calls of two passes as affine operations; calls that are equal at every batch size become one.

    Raises:
        InputError: the passes made different calls.
    """
    if not same_calls(small, large):
        raise InputError(
            f"the model makes other calls for {large.num_examples} examples than for {small.num_examples}",
            hint="its work cannot be told for other batch sizes",
        )
    counts: dict[Operation, int] = {}
    for first, second in zip(small.calls, large.calls, strict=True):
        operation = _operation(first, second, small.num_examples, large.num_examples)
        counts[operation] = counts.get(operation, 0) + 1
    return tuple(replace(operation, calls=calls) for operation, calls in counts.items())


def _operation(first: Call, second: Call, few: int, many: int) -> Operation:
    return Operation(
        kind=first.kind,
        layer=first.layer,
        backward=first.backward,
        flops=line((few, first.flops), (many, second.flops)),
        bytes_moved=line((few, first.bytes_moved), (many, second.bytes_moved)),
        dims=tuple(line((few, a), (many, b)) for a, b in zip(first.dims, second.dims, strict=True)),
    )


def layers(
    small: Pass, large: Pass, kinds: dict[str, str], num_parameters: dict[str, int]
) -> tuple[Layer, ...]:
    """The layers in ``kinds`` with what both passes saw of them; a layer never entered saw nothing."""

    def through(name: str, quantity: str) -> Affine:
        few, many = small.layers.get(name, Seen()), large.layers.get(name, Seen())
        return line(
            (small.num_examples, getattr(few, quantity)), (large.num_examples, getattr(many, quantity))
        )

    return tuple(
        Layer(
            name=name,
            kind=kind,
            num_parameters=num_parameters.get(name, 0),
            output_bytes=through(name, "output_bytes"),
            activation_bytes=through(name, "activation_bytes"),
        )
        for name, kind in kinds.items()
    )
