"""The metrics a Keras model was compiled with, as functions that give one value an example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras

from leptonai.core.errors import InputError
from leptonai.training.tensorflow.objective import correct

ExampleMetric = Callable[[Any, Any], Any]
"""(outputs, labels) -> one value an example."""


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
