"""FLOPs, bytes and activations of a Keras model, operation by operation, from the graph of one training step.

The graph is made for shapes alone and never runs. The weights enter it as inputs, so a model whose weights do
not exist (see :func:`without_weights`) is traced too.
"""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import tensorflow as tf

from leptonai.core.errors import InputError
from leptonai.training import traced
from leptonai.training.tensorflow.trace_graph import graph_calls, kept_tensors
from leptonai.training.traced import TRACED_SIZES, Pass, Seen, Trace

LossFunction = Callable[[Any, tuple[Any, ...]], Any]
"""The mean loss over a batch, from (model, columns)."""

# Marks a layer's operations by its number; names of gradients repeat the names of what they differentiate.
_MARK = "traced_layer_"
_WAITING = "uninitialized_variables"
_MARKED = re.compile(_MARK + r"(\d+)")


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Models built within have weights with a shape and no values: good for tracing, and for nothing else.

    They must know their input shape (``keras.Input``, or ``model.build(shape)`` within).
    """
    from keras.src.backend.common import global_state

    # Keras remembers variables without values and makes them all the next time any model is built.
    waiting = list(global_state.get_global_attribute(_WAITING) or [])
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        global_state.set_global_attribute(_WAITING, waiting)


def trace(
    model: Any, columns: Sequence[Any], loss: LossFunction, *, sizes: tuple[int, int] = TRACED_SIZES
) -> Trace:
    """What a forward and a backward pass do, traced for batches of two sizes; nothing is allocated or changed.

    What the graph computes for nothing (the gradient of the first layer's input) or once for all is left out.
    Each call is one of the graph as written: TensorFlow may fuse some of them when it runs.

    Args:
        model: a built Keras model.
        columns: anything with the ``shape`` and ``dtype`` of a batch: inputs first, labels last.
        loss: called with the model and symbolic columns.
        sizes: batch sizes to look at, both >= 1 and different.

    Raises:
        InputError: shapes, or the length of a loop, depend on values; or the calls differ between the sizes.
    """
    small, large = sorted(sizes)
    layers = dict(_layers(model))
    passes = [_pass(model, columns, loss, size, list(layers)) for size in (small, large)]
    found = traced.operations(*(taken for taken, _ in passes))
    own = _own_parameters(layers)
    active = {operation.layer for operation in found}
    kinds = {
        name: type(layer).__name__
        for name, layer in layers.items()
        if name in active or name in own or not _inner(layer)
    }
    variables = model.trainable_variables
    activations = [
        (taken.num_examples, float(sum(seen.activation_bytes for seen in taken.layers.values())))
        for taken, _ in passes
    ]
    return Trace(
        operations=found,
        layers=traced.layers(passes[0][0], passes[1][0], kinds, own),
        activation_bytes=traced.line(*activations),
        num_parameters=sum(math.prod(variable.shape) for variable in variables),
        parameter_bytes=sum(
            math.prod(variable.shape) * tf.as_dtype(variable.dtype).size for variable in variables
        ),
        num_tensors=len(variables),
        unused_parameters=passes[1][1],
    )


def _pass(
    model: Any, columns: Sequence[Any], loss: LossFunction, num_examples: int, names: list[str]
) -> tuple[Pass, tuple[str, ...]]:
    """One pass as a graph, and the trainable variables that it does not reach."""
    variables = list({id(variable): variable for variable in _all_variables(model)}.values())
    outputs: dict[str, int] = {}
    unused: list[str] = []
    boundary: list[int] = []
    weights: set[str] = set()

    def step(batch: Any, values: Any) -> list[Any]:
        weights.update(value.op.name for value in values)
        trainable = {id(variable) for variable in model.trainable_variables}
        watched = [value for v, value in zip(variables, values, strict=True) if id(v) in trainable]
        scope = keras.StatelessScope(
            state_mapping=list(zip(variables, values, strict=True)), initialize_variables=False
        )
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(watched)
            with scope, _marked(model, names, outputs):
                value = loss(model, tuple(batch))
        boundary.append(len(tf.compat.v1.get_default_graph().get_operations()))
        grads = tape.gradient(value, watched)
        unused.extend(
            v.path for v, grad in zip(model.trainable_variables, grads, strict=True) if grad is None
        )
        moving = [scope.get_current_value(v) for v in variables if id(v) not in trainable]
        return [value, *(_dense(grad) for grad in (*grads, *moving) if grad is not None)]

    batch = [tf.TensorSpec((num_examples, *column.shape[1:]), column.dtype) for column in columns]
    values = [tf.TensorSpec(tuple(variable.shape), variable.dtype) for variable in variables]
    graph = tf.function(step, autograph=False).get_concrete_function(batch, values).graph
    forward = {op.name for op in graph.get_operations()[: boundary[0]]}
    found = Pass(num_examples, layers={name: Seen(output_bytes=outputs.get(name, 0)) for name in names})
    found.layers.setdefault("", Seen())

    def layer_of(name: str) -> str:
        marks = _MARKED.findall(name)
        return names[int(marks[-1])] if marks else ""

    found.calls.extend(graph_calls(graph, forward, layer_of))
    for name, kept in kept_tensors(graph, forward - weights).items():
        found.layers[layer_of(name)].activation_bytes += kept
    return found, tuple(unused)


def _dense(grad: Any) -> Any:
    """A gradient as a plain tensor: rows of a table are summed into a table of zeros."""
    if isinstance(grad, tf.IndexedSlices):
        return tf.math.unsorted_segment_sum(grad.values, grad.indices, grad.dense_shape[0])
    return grad


@contextlib.contextmanager
def _marked(model: Any, names: list[str], outputs: dict[str, int]) -> Iterator[None]:
    """Name every operation after the layer that makes it, and note the bytes each layer gives out."""
    layers = dict(_layers(model))

    def wrapped(number: int, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def marked(*args: Any, **kwargs: Any) -> Any:
            with tf.name_scope(f"{_MARK}{number}"):
                result = call(*args, **kwargs)
            outputs[name] = outputs.get(name, 0) + sum(map(_known_bytes, keras.tree.flatten(result)))
            return result

        return marked

    try:
        for number, name in enumerate(names):
            # Past Keras's own attribute tracking, and undone below.
            vars(layers[name])["call"] = wrapped(number, name, layers[name].call)
        yield
    finally:
        for layer in layers.values():
            vars(layer).pop("call", None)


def _known_bytes(value: Any) -> int:
    if not tf.is_tensor(value) or not value.shape.is_fully_defined():
        return 0
    return int(math.prod(value.shape.as_list()) * value.dtype.size)


def _inner(layer: Any) -> list[Any]:
    """The layers inside a layer; a recurrent one is whole, whatever cell it repeats."""
    return [] if hasattr(layer, "cell") else list(layer._layers)


def _layers(model: Any) -> Iterator[tuple[str, Any]]:
    """All layers by their path, a layer before those inside it; equal paths get a number."""
    taken: set[str] = set()
    seen: set[int] = set()

    def walk(layer: Any, prefix: str) -> Iterator[tuple[str, Any]]:
        for inner in _inner(layer):
            if id(inner) in seen:
                continue
            seen.add(id(inner))
            path = prefix + inner.name
            while path in taken:
                path += "'"
            taken.add(path)
            yield path, inner
            yield from walk(inner, path + "/")

    yield from walk(model, "")


def _own_parameters(layers: dict[str, Any]) -> dict[str, int]:
    """Trainable numbers by the innermost layer that holds them."""
    counted: set[int] = set()
    found: dict[str, int] = {}
    for name, layer in reversed(layers.items()):
        new = [variable for variable in layer.trainable_variables if id(variable) not in counted]
        counted.update(id(variable) for variable in new)
        if new:
            found[name] = sum(math.prod(variable.shape) for variable in new)
    return found


def _all_variables(model: Any) -> list[Any]:
    if not model.built:
        raise InputError(
            "the Keras model has no weights yet", hint="build it with keras.Input, or call model.build(shape)"
        )
    return list(model.variables)
