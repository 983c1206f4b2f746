"""Metrics of a job as functions that give one value an example."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from leptonai.core.errors import InputError
from leptonai.training.job import Metric

ExampleMetric = Callable[[Any, Any], Any]
"""(outputs, labels) -> one value an example."""


@dataclass(frozen=True, slots=True)
class CompiledMetric:
    """Stands in a job for the metric its model was compiled with under ``name``, before the model exists."""

    name: str

    def __call__(self, outputs: Any, labels: Any) -> Any:
        raise InputError(f"metric {self.name!r} is known only to the model it was compiled into")


def metric_functions(metrics: Mapping[str, Metric], *, loss: Any, model: Any) -> dict[str, ExampleMetric]:
    """The functions behind a job's metrics.

    Raises:
        InputError: a metric is said to be compiled into the model, and is not.
    """
    compiled = compiled_metrics(model) if any(isinstance(m, CompiledMetric) for m in metrics.values()) else {}
    found = {}
    for name, metric in metrics.items():
        if isinstance(metric, CompiledMetric):
            if metric.name not in compiled:
                raise InputError(f"the model was not compiled with a metric {metric.name!r}")
            found[name] = compiled[metric.name]
        else:
            found[name] = _named(metric, loss)
    return found


def compiled_metrics(model: Any) -> dict[str, ExampleMetric]:
    """Each metric given to ``compile`` under the name Keras reports it by.

    Raises:
        InputError: a metric is not a mean over examples, so that workers' values cannot be joined.
    """
    if not model.compiled or model._compile_metrics is None:
        return {}
    if model._compile_metrics._user_weighted_metrics:
        raise InputError(
            "weighted_metrics are not computed on a cluster",
            hint="give them as metrics, or call model.evaluate afterwards",
        )
    found: dict[str, ExampleMetric] = {}
    for metric in keras.tree.flatten(model._compile_metrics._user_metrics or []):
        name = metric if isinstance(metric, str) else _name(metric)
        found[_free(name, found)] = _function(metric, name)
    return found


def _function(metric: Any, name: str) -> ExampleMetric:
    if str(metric).lower() in ("accuracy", "acc"):
        return lambda outputs, labels: correct(outputs, labels, logits=False)
    resolved = keras.metrics.get(metric) if isinstance(metric, str) else metric
    if isinstance(resolved, keras.metrics.MeanMetricWrapper):
        inner, options = resolved._fn, resolved._fn_kwargs
        return lambda outputs, labels: inner(labels, outputs, **options)
    if isinstance(resolved, keras.metrics.Metric):
        raise InputError(
            f"metric {name!r} is not a mean over examples, so it cannot be followed on a cluster",
            hint="leave it out of compile, or compute it afterwards with model.predict",
        )
    return lambda outputs, labels: resolved(labels, outputs)


def _name(metric: Any) -> str:
    return str(getattr(metric, "name", None) or getattr(metric, "__name__", type(metric).__name__))


def _free(name: str, taken: dict[str, ExampleMetric]) -> str:
    number, free = 0, name
    while free in taken:
        number += 1
        free = f"{name}_{number}"
    return free


def like(labels: Any, outputs: Any) -> Any:
    """Labels with the rank of the outputs, so that (n,) against (n, 1) does not broadcast to (n, n)."""
    missing = len(outputs.shape) - len(labels.shape)
    return tf.expand_dims(labels, -1) if missing == 1 and outputs.shape[-1] == 1 else labels


def _named(metric: Any, loss: Any) -> ExampleMetric:
    if callable(metric):
        return metric  # type: ignore[no-any-return]
    match metric:
        case "accuracy":
            return lambda outputs, labels: correct(outputs, labels, logits=loss == "binary_cross_entropy")
        case "mae":
            return lambda outputs, labels: tf.abs(outputs - tf.cast(like(labels, outputs), outputs.dtype))
        case _:
            return lambda outputs, labels: tf.square(outputs - tf.cast(like(labels, outputs), outputs.dtype))


def correct(outputs: Any, labels: Any, *, logits: bool) -> Any:
    """True where the prediction is right: the largest of several outputs, or the right side of a single one.

    Args:
        outputs: scores by class on the last dim, or one score an example.
        labels: class numbers, one-hot rows, or 0 and 1 for a single score.
        logits: a single score is a logit (middle 0) unless a sigmoid made it (middle 0.5).
    """
    width = outputs.shape[-1] if len(outputs.shape) > 1 else 1
    if width == 1:
        middle = 0.0 if logits and not hasattr(outputs, "_keras_logits") else 0.5
        return tf.equal(outputs > middle, tf.cast(like(labels, outputs), tf.float32) > 0.5)
    if labels.shape.rank == outputs.shape.rank:
        labels = labels[..., 0] if labels.shape[-1] == 1 else tf.argmax(labels, axis=-1)
    return tf.equal(tf.argmax(outputs, axis=-1), tf.cast(labels, tf.int64))
