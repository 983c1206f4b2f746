"""Keras's models, whose ``fit`` trains on the cluster of the ``with`` block around it and else is Keras's own."""

from __future__ import annotations

# mypy: disable-error-code="misc,no-untyped-call"
from typing import Any

import keras
from keras.src.models.functional import Functional

from leptonai.sdk.cluster import active_cluster


class ClusterFit:
    """Adds a ``fit`` that knows about clusters."""

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: Any = "auto",
        callbacks: Any = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: Any = True,
        class_weight: Any = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: Any = 1,
    ) -> Any:
        """Keras's ``fit``, argument by argument; inside ``with TFCluster(...):`` it trains on the cluster."""
        arguments = {name: value for name, value in locals().items() if name not in ("self", "__class__")}
        cluster = active_cluster()
        if cluster is None:
            return super().fit(**arguments)
        from leptonai.sdk.keras_fit import FitRequest, fit_on_cluster

        return fit_on_cluster(self, cluster, FitRequest(**arguments))


class Sequential(ClusterFit, keras.Sequential):
    """``keras.Sequential`` with a ``fit`` that knows about clusters."""


class Model(ClusterFit, keras.Model):
    """``keras.Model``, from inputs and outputs or as a base class, with a ``fit`` that knows about clusters."""

    def __new__(cls, *arguments: Any, **options: Any) -> Any:
        if cls is Model and _names_tensors(arguments, options):
            return FunctionalModel.__new__(FunctionalModel, *arguments, **options)
        return super().__new__(cls, *arguments, **options)


class FunctionalModel(Model, Functional):
    """A model made from its input and output tensors."""


def _names_tensors(arguments: tuple[Any, ...], options: dict[str, Any]) -> bool:
    return (
        len(arguments) == 2
        or (len(arguments) == 1 and "outputs" in options)
        or {"inputs", "outputs"} <= options.keys()
    )


# A saved model records its class; under Keras's own names, plain Keras opens the file without this package.
Sequential.__module__ = "keras"
FunctionalModel.__module__, FunctionalModel.__name__ = "keras.src.models.functional", "Functional"
