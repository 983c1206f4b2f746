"""What a job asks a Keras model to minimise and measure, as functions of a batch of tensors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import keras
import tensorflow as tf

from leptonai.core.errors import InputError
from leptonai.training.job import TrainJob
from leptonai.training.tensorflow.metrics import ExampleMetric, like, metric_functions

Tensors = tuple[Any, ...]
"""A batch inside a compiled function: inputs first, labels last."""


class Objective(Protocol):
    """Mean loss over a batch, and the sum of each metric over its examples."""

    def __call__(self, model: Any, batch: Tensors, *, training: bool) -> tuple[Any, Mapping[str, Any]]: ...


class WeightedStep:
    """A custom step for batches that carry one weight an example just before the labels.

    The loss is the one the model was compiled with, and the weights go to it as Keras's ``sample_weight``;
    metrics are not weighted, as in Keras.

    >>> from leptonai.training.tensorflow.objective import WeightedStep
    >>> callable(WeightedStep())
    True
    """

    def __call__(self, model: Any, batch: Tensors) -> Any:
        return self.loss(model, batch, call_model(model, batch[:-2], training=True), training=True)

    def loss(self, model: Any, batch: Tensors, outputs: Any, *, training: bool) -> Any:
        """The mean weighted loss for outputs already computed."""
        *inputs, weights, labels = batch
        return model.compute_loss(
            x=structured(inputs), y=labels, y_pred=outputs, sample_weight=weights, training=training
        )


def objective_for(job: TrainJob, model: Any) -> Objective:
    """The loss and metrics of the job for this model.

    Raises:
        InputError: the job names no loss and the model was not compiled, or its compiled loss is not a mean.
    """
    metrics = metric_functions(job.evaluate.named(job.loss), loss=job.loss, model=model)
    if isinstance(job.step, WeightedStep):
        check_compiled(model)
        return _with_weights(job.step, metrics)
    if job.step is not None:
        return _with_step(job.step, metrics)
    if job.loss is None:
        check_compiled(model)
        return _with_loss(_compiled_loss, metrics)
    loss = _named_loss(job.loss) if isinstance(job.loss, str) else _function_loss(job.loss)
    return _with_loss(loss, metrics)


def check_compiled(model: Any) -> None:
    """Raise InputError unless the model was compiled with a loss that is a mean over examples."""
    if not model.compiled or model._compile_loss is None:
        raise InputError(
            "the job names no loss and the Keras model was not compiled",
            hint='give TrainJob(loss="cross_entropy"), or call model.compile(loss=...)',
        )
    for loss in keras.tree.flatten(model._compile_loss._user_loss):
        reduction = getattr(loss, "reduction", "sum_over_batch_size")
        if reduction not in ("sum_over_batch_size", "mean"):
            raise InputError(
                f"the compiled loss reduces by {reduction!r}, so it depends on how workers share a batch",
                hint="compile with reduction='sum_over_batch_size'",
            )


def structured(inputs: Any) -> Any:
    """One input as itself, several as a list."""
    return inputs[0] if len(inputs) == 1 else list(inputs)


def call_model(model: Any, inputs: Any, *, training: bool) -> Any:
    """The model's outputs; ``training`` goes only to models that take it."""
    return (
        model(structured(inputs), training=training)
        if model._call_has_training_arg
        else model(structured(inputs))
    )


def _unmasked(outputs: Any) -> Any:
    """The outputs; refused when they carry a mask, because then a mean is not over a batch's examples alone."""
    if getattr(outputs, "_keras_mask", None) is not None:
        raise InputError(
            "the model's output carries a mask, so its loss depends on how workers share a batch",
            hint="stop the mask before the last layer, or write a step function that applies it",
        )
    return outputs


LossFunction = Callable[[Any, Any, Any, Any], Any]
"""(model, inputs, labels, outputs) -> mean loss."""


def _with_loss(loss: LossFunction, metrics: Mapping[str, ExampleMetric]) -> Objective:
    def measure(model: Any, batch: Tensors, *, training: bool) -> tuple[Any, Mapping[str, Any]]:
        outputs = _unmasked(call_model(model, batch[:-1], training=training))
        value = loss(model, batch[:-1], batch[-1], outputs)
        return tf.cast(value, tf.float32), _sums(metrics, outputs, batch[-1])

    return measure


def _with_weights(step: WeightedStep, metrics: Mapping[str, ExampleMetric]) -> Objective:
    def measure(model: Any, batch: Tensors, *, training: bool) -> tuple[Any, Mapping[str, Any]]:
        outputs = _unmasked(call_model(model, batch[:-2], training=training))
        value = step.loss(model, batch, outputs, training=training)
        return tf.cast(value, tf.float32), _sums(metrics, outputs, batch[-1])

    return measure


def _with_step(step: Callable[[Any, Any], Any], metrics: Mapping[str, ExampleMetric]) -> Objective:
    def measure(model: Any, batch: Tensors, *, training: bool) -> tuple[Any, Mapping[str, Any]]:
        value = tf.cast(step(model, batch), tf.float32)
        if training:
            # The step alone knows how it called the model; a second forward pass would double the cost.
            return value, {}
        outputs = call_model(model, batch[:-1], training=False)
        return value, _sums(metrics, outputs, batch[-1])

    return measure


def _compiled_loss(model: Any, inputs: Any, labels: Any, outputs: Any) -> Any:
    return model.compute_loss(x=structured(inputs), y=labels, y_pred=outputs, training=True)


def _named_loss(name: str) -> LossFunction:
    def loss(model: Any, inputs: Any, labels: Any, outputs: Any) -> Any:
        # A last layer with softmax or sigmoid remembers its logits, and Keras takes those by itself.
        from_logits = not hasattr(outputs, "_keras_logits")
        outputs = outputs if hasattr(outputs, "_keras_logits") else tf.cast(outputs, tf.float32)
        if name == "cross_entropy":
            each = keras.losses.sparse_categorical_crossentropy(labels, outputs, from_logits=from_logits)
        elif name == "binary_cross_entropy":
            labels = tf.cast(like(labels, outputs), tf.float32)
            each = keras.losses.binary_crossentropy(labels, outputs, from_logits=from_logits)
        else:
            each = keras.losses.mean_squared_error(like(labels, outputs), outputs)
        return tf.reduce_mean(tf.cast(each, tf.float32)) + _penalties(model)

    return loss


def _function_loss(function: Callable[[Any, Any], Any]) -> LossFunction:
    keras_order = isinstance(function, keras.losses.Loss)

    def loss(model: Any, inputs: Any, labels: Any, outputs: Any) -> Any:
        value = function(labels, outputs) if keras_order else function(outputs, labels)
        if len(value.shape) > 0:
            value = tf.reduce_mean(value)
        return tf.cast(value, tf.float32) + _penalties(model)

    return loss


def _penalties(model: Any) -> Any:
    """Regularisation and other losses that layers add by themselves."""
    return tf.add_n([tf.cast(loss, tf.float32) for loss in model.losses]) if model.losses else 0.0


def _sums(metrics: Mapping[str, ExampleMetric], outputs: Any, labels: Any) -> Mapping[str, Any]:
    """Each metric's mean over whatever dims follow the first, summed over the examples."""
    sums = {}
    for name, metric in metrics.items():
        values = tf.cast(metric(outputs, labels), tf.float32)
        dims = list(range(1, len(values.shape)))
        sums[name] = tf.reduce_sum(tf.reduce_mean(values, axis=dims) if dims else values)
    return sums
