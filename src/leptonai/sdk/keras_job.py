"""A compiled Keras model on its way to the workers: its configuration and weights, not its graph."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import cloudpickle
import numpy as np
from numpy.typing import NDArray

from leptonai.sdk.sources import Source
from leptonai.training.data.dataset import Data
from leptonai.training.job import Checkpoints, Evaluate, TrainJob

Array = NDArray[Any]
WEIGHTS = "model_weights"


@dataclass(frozen=True, slots=True, kw_only=True)
class KerasJob:
    """Builds the job in a worker; travels there by pickle through the private pipe.

    Args:
        model: configuration of the compiled model, as Keras serialises it.
        own_code: cloudpickle bytes of the layers and functions it uses that are not Keras's, by name.
        search_path: ``sys.path`` of the caller, where its modules are found.
        has_weights_column: whether batches carry a weight an example.
        metrics: names of the metrics the model was compiled with.
    """

    model: Mapping[str, Any]
    own_code: bytes
    search_path: tuple[str, ...]
    train: Source
    evaluate: Source | None
    has_weights_column: bool
    metrics: tuple[str, ...]
    global_batch_size: int
    evaluation_batch_size: int
    evaluate_every_epochs: int
    epochs: int
    seed: int
    shuffle: bool = True
    name: str = ""

    def __call__(self, arrays: Mapping[str, Array]) -> TrainJob:
        from leptonai.training.tensorflow.runtime import import_keras

        sys.path += [place for place in self.search_path if place not in sys.path]
        import_keras()
        from leptonai.training.tensorflow.metrics import CompiledMetric
        from leptonai.training.tensorflow.objective import WeightedStep

        evaluate = None if self.evaluate is None else self.evaluate.open(arrays)
        return TrainJob(
            name=self.name,
            model=lambda: self._model(arrays[WEIGHTS]),
            data=Data(train=self.train.open(arrays), evaluate=evaluate),
            step=WeightedStep() if self.has_weights_column else None,
            global_batch_size=self.global_batch_size,
            epochs=self.epochs,
            seed=self.seed,
            shuffle=self.shuffle,
            # The layers carry their own precision already.
            precision="float32",
            evaluate=Evaluate(
                every_epochs=self.evaluate_every_epochs,
                batch_size=self.evaluation_batch_size,
                # The model must not be built yet: the worker has not set TensorFlow's threads.
                metrics={name: CompiledMetric(name) for name in self.metrics},
            ),
            checkpoints=Checkpoints(keep=1),
        )

    def _model(self, weights: Array) -> Any:
        import keras

        # Keras guards against configurations from strangers; this one came from our own parent process.
        keras.config.enable_unsafe_deserialization()
        model = keras.saving.deserialize_keras_object(
            dict(self.model), custom_objects=cloudpickle.loads(self.own_code), safe_mode=False
        )
        model.optimizer.build(model.trainable_variables)
        assign_flat([*model.weights, *model.optimizer.variables], weights)
        return model


def pack_model(model: Any) -> tuple[Mapping[str, Any], bytes, Array]:
    """Configuration, own code and weights (with the optimiser's) of a built and compiled model."""
    import keras

    model.optimizer.build(model.trainable_variables)
    config = keras.saving.serialize_keras_object(model)
    return config, cloudpickle.dumps(own_objects(model)), flat([*model.weights, *model.optimizer.variables])


def own_objects(model: Any) -> dict[str, Any]:
    """Classes and functions the model uses that are not Keras's, by the names its configuration has for them."""
    import keras

    found: list[Any] = []
    for layer in model._flatten_layers():
        found.append(type(layer))
        found += [value if inspect.isfunction(value) else type(value) for value in vars(layer).values()]
    compiled = vars(model).get("_compile_config")
    for value in keras.tree.flatten(compiled.config if compiled is not None else {}):
        found.append(value if inspect.isfunction(value) or inspect.isclass(value) else type(value))
    names: dict[str, Any] = {}
    for item in found:
        if _is_own(item):
            names[item.__name__] = item
            names[keras.saving.get_registered_name(item)] = item
    return names


def _is_own(item: Any) -> bool:
    room = str(getattr(item, "__module__", "")).split(".")[0]
    return room not in (
        "",
        "builtins",
        "keras",
        "tensorflow",
        "numpy",
        "leptonai",
        "collections",
        "ml_dtypes",
    )


def flat(variables: list[Any]) -> Array:
    """The bytes of the variables' values one after another."""
    return np.frombuffer(b"".join(variable.numpy().tobytes() for variable in variables), np.uint8)


def assign_flat(variables: list[Any], values: Array) -> None:
    """Give the variables the values that :func:`flat` joined."""
    start = 0
    for variable in variables:
        like = variable.numpy()
        stop = start + like.nbytes
        variable.assign(np.frombuffer(values[start:stop].tobytes(), like.dtype).reshape(like.shape))
        start = stop
    assert start == len(values)
