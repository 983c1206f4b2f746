"""Walks a TensorFlow graph: what it calls, loops and functions followed, and what the forward part keeps."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import tensorflow as tf

from leptonai.core.errors import InputError
from leptonai.training.tensorflow.trace_operations import VIEWS, cost, tensor_bytes
from leptonai.training.traced import Call

_LOOPS = ("While", "StatelessWhile")
_BRANCHES = ("If", "StatelessIf")
_FUNCTIONS = ("PartitionedCall", "StatefulPartitionedCall")


def graph_calls(graph: Any, forward: set[str], layer_of: Callable[[str], str]) -> Iterator[Call]:
    """The calls that one run of a graph makes, those that nothing needs or that are constant left out.

    Args:
        forward: names of the operations of the forward pass.
        layer_of: layer of an operation, by its name.

    Raises:
        InputError: a shape or the length of a loop is not known before the run.
    """
    constant: set[str] = set()
    for op in _needed(graph):
        if _is_constant(op, constant):
            constant.add(op.name)
            continue
        yield from _calls(op, layer_of(op.name), op.name not in forward)


def kept_tensors(graph: Any, forward: set[str]) -> dict[str, int]:
    """Bytes of each value of the forward pass that the backward pass reads, by the name of its tensor.

    Args:
        forward: names of the operations of the forward pass, those that give weights left out.
    """
    kept: dict[str, int] = {}
    constant: set[str] = set()
    for op in _needed(graph):
        if _is_constant(op, constant):
            constant.add(op.name)
        if op.name not in forward and op.type not in VIEWS:
            for tensor in op.inputs:
                source = _source(tensor)
                if source.op.name in forward and source.op.name not in constant:
                    kept[source.name] = _kept_bytes(source)
    return kept


def _calls(op: Any, layer: str, backward: bool) -> Iterator[Call]:
    if op.type in _LOOPS:
        for call in _inside(_inner_graph(op, "body"), layer, backward):
            yield from [call] * _trips(op)
    elif op.type in _BRANCHES:  # of which one runs: the first stands for both
        yield from _inside(_inner_graph(op, "then_branch"), layer, backward)
    elif op.type in _FUNCTIONS:
        yield from _inside(_inner_graph(op, "f"), layer, backward)
    else:
        found = cost(op)
        if found is not None:
            yield Call(op.type, found.kind, layer, backward, found.flops, found.bytes_moved, found.dims)


def _inside(graph: Any, layer: str, backward: bool) -> Iterator[Call]:
    constant: set[str] = set()
    for op in _needed(graph):
        if _is_constant(op, constant):
            constant.add(op.name)
        else:
            yield from _calls(op, layer, backward)


def _needed(graph: Any) -> list[Any]:
    """The operations that the outputs depend on, in the order of the graph."""
    needed: set[str] = set()
    waiting = [tensor.op for tensor in graph.outputs]
    while waiting:
        op = waiting.pop()
        if op.name not in needed:
            needed.add(op.name)
            waiting.extend(tensor.op for tensor in op.inputs)
            waiting.extend(op.control_inputs)
    return [op for op in graph.get_operations() if op.name in needed]


def _is_constant(op: Any, constant: set[str]) -> bool:
    """Whether TensorFlow computes it once, before the first run."""
    if op.type in ("Const", "Shape", "ShapeN", "Size", "Rank"):
        return True
    stateful = op.type.startswith(("Random", "Stateless", "Placeholder"))
    return bool(op.inputs) and not stateful and all(tensor.op.name in constant for tensor in op.inputs)


def _inner_graph(op: Any, attribute: str) -> Any:
    known = {"body": "_body_graph", "then_branch": "_true_graph"}.get(attribute)
    found = getattr(op, known, None) if known else None
    return found if found is not None else op.graph._get_function(op.get_attr(attribute).name).graph


def _trips(op: Any) -> int:
    """How often a loop repeats: its second input is the most that it may, and what Keras's loops do."""
    limit = _static(op.inputs[1])
    if limit is None or limit < 0:
        raise InputError(
            f"the length of the loop {op.name} is not known before the run",
            hint="the work of a model with loops that depend on values cannot be told",
        )
    return limit


def _static(tensor: Any) -> int | None:
    """The whole number that a tensor always holds, if that can be told."""
    while tensor.op.type in ("Max", "Identity", "Cast", "Minimum") and tensor.op.inputs:
        tensor = tensor.op.inputs[0]
    value = tf.get_static_value(tensor)
    return None if value is None or value.size != 1 else int(value.reshape(-1)[0])


def _source(tensor: Any) -> Any:
    while tensor.op.type in VIEWS and tensor.op.inputs:
        tensor = tensor.op.inputs[0]
    return tensor


def _kept_bytes(tensor: Any) -> int:
    """Bytes of a value; a list that a loop filled counts the elements pushed onto it."""
    op = tensor.op
    if op.type in _LOOPS and tensor.dtype == tf.variant:
        pushed = _inner_graph(op, "body").outputs[tensor.value_index]
        element = pushed.op.inputs[1] if pushed.op.type == "TensorListPushBack" else None
        return 0 if element is None else tensor_bytes(element) * _trips(op)
    return tensor_bytes(tensor)
