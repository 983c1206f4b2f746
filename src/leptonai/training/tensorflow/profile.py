"""What a Keras job costs: parameters, FLOPs and bytes per example, by layer and by operation, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from leptonai.compute.workload import LayerWork, Workload
from leptonai.core.errors import InputError
from leptonai.training.data.dataset import Data
from leptonai.training.job import TrainJob
from leptonai.training.learner import Batch
from leptonai.training.tensorflow.build import as_keras, check_labels, first_examples, make_weights
from leptonai.training.tensorflow.objective import objective_for
from leptonai.training.tensorflow.trace import trace
from leptonai.training.traced import Trace, per_example

# The backward pass computes the gradients of inputs and of weights, each as dear as the forward pass.
_PASSES = 3
_FLOAT_BYTES = 4


def profile_keras(model: Any, job: TrainJob, data: Data) -> Workload:
    """The work of a job, without training; makes the model's weights if it has none.

    The graph of a step is traced; ``operations`` hold each of its calls, 2 FLOPs for a multiply-add.

    A model whose shapes depend on values is judged by its layers: a kernel is taken to be applied once at every
    position of its layer's output (or step of its input's sequence); sizes that vary count as 1; layers whose
    output shape cannot be told count as one product with each kernel, all three times (forward, and backward for
    inputs and weights); and there are no operations.

    Raises:
        InputError: labels lie outside the classes the model's output has.
    """
    examples = first_examples(data)
    if not model.built:
        make_weights(model, examples)
    check_labels(job, data, model)
    found = _traced(model, job, examples)
    if found is None:
        layers = tuple(_layer(layer) for layer in _leaves(model))
    else:
        layers = found.layer_works(job.global_batch_size)
    num_parameters = sum(math.prod(variable.shape) for variable in model.trainable_variables)
    return Workload(
        num_parameters=num_parameters,
        # Gradients cross the exchange as float32 whatever the weights are.
        parameter_bytes=_FLOAT_BYTES * num_parameters,
        flops_per_example=sum(layer.flops for layer in layers),
        activation_bytes_per_example=(
            sum(layer.output_bytes for layer in layers)
            if found is None
            else round(per_example(found.activation_bytes, job.global_batch_size))
        ),
        num_examples=len(data.train),
        global_batch_size=job.global_batch_size,
        steps_per_epoch=job.steps_per_epoch(len(data.train)),
        total_steps=job.total_steps(len(data.train)),
        layers=layers,
        operations=() if found is None else found.operations,
        num_tensors=len(model.trainable_variables),
        input_bytes_per_example=sum(column[0].nbytes for column in examples),
    )


def _traced(model: Any, job: TrainJob, examples: Batch) -> Trace | None:
    """The trace of one step of this job; None where shapes are not known before the run."""
    try:
        objective = objective_for(job, model)
        return trace(
            model,
            [as_keras(column) for column in examples],
            lambda traced_model, batch: objective(traced_model, batch, training=True)[0],
        )
    except (
        InputError,
        ValueError,
        TypeError,
        RuntimeError,
    ):  # an error of the job itself comes up in training
        return None


def _leaves(layer: Any) -> Iterator[Any]:
    """The layers that compute; a recurrent layer is one, whatever cell it repeats."""
    for inner in layer._layers:
        if inner._layers and not hasattr(inner, "cell"):
            yield from _leaves(inner)
        else:
            yield inner


def _layer(layer: Any) -> LayerWork:
    output = _known_shape(layer, "output")
    return LayerWork(
        name=layer.name,
        kind=type(layer).__name__,
        num_parameters=sum(math.prod(variable.shape) for variable in layer.trainable_variables),
        flops=_PASSES * _forward_flops(layer, output),
        output_bytes=_FLOAT_BYTES * math.prod(output),
    )


def _forward_flops(layer: Any, output: tuple[int, ...]) -> float:
    if type(layer).__name__ == "Embedding":
        return 0.0
    kernels: int = sum(
        math.prod(variable.shape) for variable in layer.trainable_variables if len(variable.shape) > 1
    )
    return 2.0 * kernels * _positions(layer, output)


def _positions(layer: Any, output: tuple[int, ...]) -> int:
    """How often a layer applies its kernels to one example."""
    if hasattr(layer, "cell"):
        inputs = _known_shape(layer, "input")
        return inputs[0] if len(inputs) > 1 else 1
    if getattr(layer, "data_format", None) == "channels_first":
        return math.prod(output[1:])
    return math.prod(output[:-1])


def _known_shape(layer: Any, side: str) -> tuple[int, ...]:
    """Shape of one example on that side of the layer; () when it cannot be told."""
    try:
        tensor = getattr(layer, side)
    except (AttributeError, ValueError):
        return ()
    shape = getattr(tensor, "shape", None)
    return () if shape is None else tuple(1 if size is None else int(size) for size in shape[1:])
