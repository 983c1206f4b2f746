"""Make a Keras model ready for a cluster: built, compiled with what fits if it was not, and of a kind that works."""

from __future__ import annotations

from typing import Any

import keras

from leptonai.core.errors import InputError
from leptonai.sdk.arguments import Examples
from leptonai.sdk.inference import Activation, fitting_loss, is_classification
from leptonai.training.tensorflow.build import make_weights
from leptonai.training.tensorflow.metrics import compiled_metrics
from leptonai.training.tensorflow.objective import call_model, check_compiled

_STEP_METHODS = ("train_step", "test_step", "compute_metrics", "make_train_function")


def ready_to_train(model: Any, examples: Examples) -> None:
    """Build and compile the model where its owner has not.

    Raises:
        InputError: it has several outputs, steps of its own, or metrics that workers cannot join.
    """
    _check_steps_are_keras_own(model)
    batch = (*(column[:1] for column in examples.inputs), examples.labels[:1])
    if not model.built:
        make_weights(model, batch)
    outputs = call_model(model, batch[:-1], training=False)
    if isinstance(outputs, list | tuple | dict):
        raise InputError(
            f"fit: the model has {len(outputs)} outputs, and a cluster trains models with one",
            hint="train it outside the cluster, or write a job with a step function",
        )
    if not model.compiled:
        compile_fitting(model, outputs, examples)
    if model.optimizer is None:
        raise InputError("fit: the model was compiled without an optimizer")
    check_compiled(model)
    compiled_metrics(model)


def compile_fitting(model: Any, outputs: Any, examples: Examples) -> None:
    """Compile with Adam and the loss that fits the model's output and the labels."""
    activation = last_activation(model)
    width = int(outputs.shape[-1]) if len(outputs.shape) > 1 else 1
    if len(outputs.shape) > 2:
        raise InputError(
            f"fit: no loss can be chosen for an output of shape {tuple(outputs.shape[1:])}",
            hint="call model.compile(loss=...)",
        )
    name = fitting_loss(outputs=width, labels=examples.labels, activation=activation)
    from_logits = activation not in ("softmax", "sigmoid")
    loss = {
        "sparse_categorical": lambda: keras.losses.SparseCategoricalCrossentropy(from_logits=from_logits),
        "categorical": lambda: keras.losses.CategoricalCrossentropy(from_logits=from_logits),
        "binary": lambda: keras.losses.BinaryCrossentropy(from_logits=from_logits),
        "mse": keras.losses.MeanSquaredError,
    }[name]()
    metrics = ["accuracy"] if is_classification(name) else None
    if name == "binary" and width > 1:
        metrics = ["binary_accuracy"]  # "accuracy" would compare the largest output with one class
    model.compile(optimizer=keras.optimizers.Adam(), loss=loss, metrics=metrics)


def last_activation(model: Any) -> Activation:
    """What the layer that makes the model's output applies to its sums."""
    try:
        layer = model.outputs[0]._keras_history[0]
    except (AttributeError, TypeError, IndexError, ValueError):
        return "other"
    if isinstance(layer, keras.layers.Softmax):
        return "softmax"
    match getattr(getattr(layer, "activation", None), "__name__", ""):
        case "softmax":
            return "softmax"
        case "sigmoid":
            return "sigmoid"
        case "log_softmax":
            return "log_softmax"
        case _:
            return "other"


def _check_steps_are_keras_own(model: Any) -> None:
    for name in _STEP_METHODS:
        if getattr(type(model), name) is not getattr(keras.Model, name):
            raise InputError(
                f"fit: {type(model).__name__} overrides {name}, which a cluster does not call",
                hint="train it outside the cluster, or write a job with a step function",
            )
