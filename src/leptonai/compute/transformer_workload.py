"""The work of a transformer told in six numbers: its layers and operations, as tracing such a model finds them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

from leptonai.compute.transformer import Transformer
from leptonai.compute.workload import LayerWork, Operation, Workload

Affine = tuple[float, float]

_HALF_BYTES = 2
_TOKEN_BYTES = 8  # a token's number, as int64
_LOSS_BYTES = 4  # the loss is computed in float32
_LAYER_TENSORS = 12  # weight and bias of four maps and two normalisations
_OTHER_TENSORS = 4  # two embeddings, weight and bias of the last normalisation


def workload_of(
    shape: Transformer,
    *,
    global_batch_size: int,
    total_steps: int,
    num_examples: int | None = None,
    bytes_per_number: int = _HALF_BYTES,
    recompute: bool = False,
) -> Workload:
    """The work of training this transformer; an example is one sequence.

    Args:
        global_batch_size: sequences in one optimiser step, >= 1.
        total_steps: optimiser steps, >= 1.
        num_examples: sequences there are; None: as many as the run takes, each once.
        bytes_per_number: of weights, activations and gradients.
        recompute: run each layer's forward pass again in the backward pass, and keep only its input.

    Raises:
        InputError: a value lies outside its range.

    Source: FLOPs, Narayanan et al. 2021 (Megatron-LM, SC21), section 5.1 and appendix;
    activations, Korthikanti et al. 2022, equations 1 and 2, and section 4.3.

    >>> gpt = Transformer(num_layers=96, hidden=12288, num_heads=96, sequence=2048, vocabulary=51200)
    >>> work = workload_of(gpt, global_batch_size=1536, total_steps=1, recompute=True)
    >>> s, h, l, v = 2048, 12288, 96, 51200
    >>> round(work.flops_per_example / (96 * s * l * h**2 * (1 + s / (6 * h) + v / (16 * l * h))), 6)
    1.0
    """
    operations = operations_of(shape, bytes_per_number=bytes_per_number, recompute=recompute)
    layers = _layers(shape, operations, bytes_per_number)
    examples = max(1, global_batch_size * total_steps) if num_examples is None else num_examples
    return Workload(
        num_parameters=shape.num_parameters,
        parameter_bytes=shape.num_parameters * bytes_per_number,
        flops_per_example=sum(layer.flops for layer in layers),
        activation_bytes_per_example=activation_bytes(
            shape, bytes_per_number=bytes_per_number, recompute=recompute
        ),
        num_examples=examples,
        global_batch_size=global_batch_size,
        steps_per_epoch=max(1, math.ceil(examples / global_batch_size)) if global_batch_size > 0 else 1,
        total_steps=total_steps,
        layers=layers,
        operations=operations,
        num_tensors=_LAYER_TENSORS * shape.num_layers + _OTHER_TENSORS,
        input_bytes_per_example=_TOKEN_BYTES * shape.sequence,
    )


def activation_bytes(
    shape: Transformer, *, bytes_per_number: int = _HALF_BYTES, recompute: bool = False
) -> int:
    """Bytes that one sequence keeps for the backward pass, dropout masks of one byte among them.

    Source: Korthikanti et al. 2022, equations 1 and 2 (34 s h + 5 a s^2 a layer, or 2 s h), and section 4.3.
    """
    n, s, h = bytes_per_number, shape.sequence, shape.hidden
    if recompute:
        layer = n * s * h
    else:
        scores = (2 * n + 1) * shape.num_heads * s * s
        attention = (5 * n + 1) * s * h + scores
        feed_forward = (n + 1) * s * h + 2 * n * s * shape.width
        layer = attention + feed_forward + 2 * n * s * h
    embedding_mask = s * h
    head = 2 * n * s * h + _LOSS_BYTES * s * shape.vocabulary
    return shape.num_layers * layer + embedding_mask + head


def operations_of(
    shape: Transformer, *, bytes_per_number: int = _HALF_BYTES, recompute: bool = False
) -> tuple[Operation, ...]:
    """The calls of one forward and backward pass, layer by layer, attention as products and a softmax."""
    n, s, h, v = bytes_per_number, shape.sequence, shape.hidden, shape.vocabulary
    found = [
        Operation(kind="gather", layer="embedding", calls=2, bytes_moved=(0.0, 2.0 * n * s * h)),
        _elementwise("embedding", s * h, 3, n),
    ]
    for number in range(shape.num_layers):
        name = f"layers.{number}"
        forward = tuple(_layer_forward(shape, name, n))
        again = tuple(dataclasses.replace(operation, backward=True) for operation in forward)
        found += [*forward, *(again if recompute else ()), *_layer_backward(shape, name, n)]
    head = _linear("head", s, h, v, n)
    found += [_norm("head", s * h, 2, n), head[0], _norm("head", s * v, 2, _LOSS_BYTES)]
    found += [_norm("head", s * v, 2, _LOSS_BYTES, backward=True), *head[1:]]
    found += [_norm("head", s * h, 3, n, backward=True)]
    table = Operation(
        kind="gather",
        layer="embedding",
        backward=True,
        bytes_moved=(float(n * v * h), float(n * s * h + _TOKEN_BYTES * s)),
    )
    return (*found, table)


def _layer_forward(shape: Transformer, name: str, n: int) -> Iterator[Operation]:
    for maps in _maps(shape, name, n):
        yield maps[0]
    yield from _rest(shape, name, n, backward=False)


def _layer_backward(shape: Transformer, name: str, n: int) -> Iterator[Operation]:
    for maps in _maps(shape, name, n):
        yield from maps[1:]
    yield from _rest(shape, name, n, backward=True)


def _maps(shape: Transformer, name: str, n: int) -> Iterator[tuple[Operation, Operation, Operation]]:
    """The products of a layer, each with its two gradients."""
    s, h, a = shape.sequence, shape.hidden, shape.num_heads
    yield _linear(name, s, h, 3 * h, n)
    yield _attention(name, a, s, h // a, s, n)
    yield _attention(name, a, s, s, h // a, n)
    yield _linear(name, s, h, h, n)
    yield _linear(name, s, h, shape.width, n)
    yield _linear(name, s, shape.width, h, n)


def _rest(shape: Transformer, name: str, n: int, *, backward: bool) -> Iterator[Operation]:
    """Normalisations, softmax, activation function and residual sums; a gradient reads one tensor more."""
    s, h, more = shape.sequence, shape.hidden, int(backward)
    scores = shape.num_heads * s * s
    norm = _norm(name, s * h, 2 + more, n, backward=backward)
    yield dataclasses.replace(norm, calls=2)
    yield _norm(name, scores, 2 + more, n, backward=backward)
    yield _elementwise(name, scores, 2, n, backward=backward)  # scale and mask
    yield _elementwise(name, s * shape.width, 2 + more, n, backward=backward)
    yield dataclasses.replace(_elementwise(name, s * h, 3, n, backward=backward), calls=2)


def _linear(name: str, s: int, k: int, m: int, n: int) -> tuple[Operation, Operation, Operation]:
    """A map from width k to m over s tokens, the gradient of its input, and that of its weight."""
    tokens = (0.0, float(s))
    flops = (0.0, 2.0 * s * k * m)
    moved = (float(n * k * m), float(n * s * (k + m)))

    def product(rows: Affine, inner: Affine, columns: Affine, backward: bool) -> Operation:
        return Operation(
            kind="matmul",
            layer=name,
            backward=backward,
            flops=flops,
            bytes_moved=moved,
            dims=((1.0, 0.0), rows, inner, columns),
        )

    wide, narrow = (float(m), 0.0), (float(k), 0.0)
    return (
        product(tokens, narrow, wide, False),
        product(tokens, wide, narrow, True),
        product(narrow, tokens, wide, True),
    )


def _attention(
    name: str, heads: int, rows: int, inner: int, columns: int, n: int
) -> tuple[Operation, Operation, Operation]:
    """A product of activations with activations in every head, and its two gradients."""

    def product(m: int, k: int, c: int, backward: bool) -> Operation:
        return Operation(
            kind="matmul",
            layer=name,
            backward=backward,
            flops=(0.0, 2.0 * heads * rows * inner * columns),
            bytes_moved=(0.0, float(n * heads * (rows * inner + inner * columns + rows * columns))),
            dims=((0.0, float(heads)), (float(m), 0.0), (float(k), 0.0), (float(c), 0.0)),
        )

    return (
        product(rows, inner, columns, False),
        product(rows, columns, inner, True),
        product(inner, rows, columns, True),
    )


def _norm(name: str, elements: int, tensors: int, n: int, *, backward: bool = False) -> Operation:
    return Operation(
        kind="reduction",
        layer=name,
        backward=backward,
        flops=(0.0, float(elements)),
        bytes_moved=(0.0, float(n * tensors * elements)),
    )


def _elementwise(name: str, elements: int, tensors: int, n: int, *, backward: bool = False) -> Operation:
    return dataclasses.replace(_norm(name, elements, tensors, n, backward=backward), kind="elementwise")


def _layers(shape: Transformer, operations: tuple[Operation, ...], n: int) -> tuple[LayerWork, ...]:
    flops: dict[str, float] = {}
    for operation in operations:
        if operation.kind == "matmul":
            flops[operation.layer] = flops.get(operation.layer, 0.0) + operation.calls * operation.flops[1]
    stream = n * shape.sequence * shape.hidden

    def layer(name: str, kind: str, parameters: int, output_bytes: int) -> LayerWork:
        work = flops.get(name, 0.0)
        return LayerWork(
            name=name, kind=kind, num_parameters=parameters, flops=work, output_bytes=output_bytes
        )

    return (
        layer("embedding", "Embedding", shape.embedding_parameters, stream),
        *(
            layer(f"layers.{number}", "TransformerLayer", shape.layer_parameters, stream)
            for number in range(shape.num_layers)
        ),
        # The output map is the embedding's; only the last normalisation is the head's own.
        layer("head", "Head", 2 * shape.hidden, n * shape.sequence * shape.vocabulary),
    )
