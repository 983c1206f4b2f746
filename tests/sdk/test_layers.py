"""Layers with a leading shape, models under Keras's own names."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leptonai import TensorFlow

keras = pytest.importorskip("keras")

WITH_SHAPE = [
    ("Conv2D", ((8, 8, 1), 2, 3), (6, 6, 2)),
    ("Dense", ((5,), 4), (4,)),
    ("LSTM", ((7, 3), 4), (4,)),
    ("Flatten", ((2, 3),), (6,)),
    ("Dropout", ((5,), 0.5), (5,)),
    ("BatchNormalization", ((5,),), (5,)),
    ("Activation", ((5,), "relu"), (5,)),
    ("GlobalAveragePooling2D", ((4, 4, 3),), (3,)),
    ("RepeatVector", ((5,), 2), (2, 5)),
]


@pytest.mark.parametrize(("name", "arguments", "output"), WITH_SHAPE, ids=[case[0] for case in WITH_SHAPE])
def test_a_leading_shape_is_the_input_shape(name: str, arguments: Any, output: Any) -> None:
    model = TensorFlow.Sequential([getattr(TensorFlow, name)(*arguments)])
    assert model.input_shape == (None, *arguments[0])
    assert model.output_shape == (None, *output)


KERAS_MEANING = [
    ("MaxPooling2D", ((2, 2),), "pool_size", (2, 2)),
    ("AveragePooling2D", ((3, 2), 1), "pool_size", (3, 2)),
    ("Reshape", ((2, 3),), "target_shape", (2, 3)),
    ("Permute", ((2, 1),), "dims", (2, 1)),
    ("ZeroPadding2D", ((1, 2),), "padding", ((1, 1), (2, 2))),
    ("UpSampling2D", ((2, 2),), "size", (2, 2)),
    ("DepthwiseConv2D", ((3, 3),), "kernel_size", (3, 3)),
    ("LayerNormalization", ((1, 2),), "axis", [1, 2]),
]


@pytest.mark.parametrize(
    ("name", "arguments", "attribute", "value"), KERAS_MEANING, ids=[case[0] for case in KERAS_MEANING]
)
def test_a_tuple_that_means_something_to_keras_keeps_its_meaning(
    name: str, arguments: Any, attribute: str, value: Any
) -> None:
    layer = getattr(TensorFlow, name)(*arguments)
    found = getattr(layer, attribute)
    assert (list(found) if isinstance(value, list) else found) == value
    assert getattr(layer, "_input_shape_arg", None) is None


def test_every_keras_layer_is_here_with_its_signature() -> None:
    names = [name for name in dir(keras.layers) if inspect.isclass(getattr(keras.layers, name))]
    assert len(names) > 100
    for name in names:
        assert inspect.signature(getattr(TensorFlow, name)) == inspect.signature(
            getattr(keras.layers, name)
        ), name


def test_layers_can_be_derived_from() -> None:
    class Twice(TensorFlow.Layer):  # type: ignore[misc]
        def call(self, inputs: Any) -> Any:
            return 2 * inputs

    assert float(Twice()(np.ones(1))[0]) == 2.0


def test_the_rest_of_keras_is_here_and_a_wrong_name_is_told() -> None:
    assert TensorFlow.optimizers is keras.optimizers
    with pytest.raises(AttributeError, match="did you mean 'Conv2D'"):
        TensorFlow.Conv2d  # noqa: B018


def test_outside_a_cluster_fit_is_keras_own() -> None:
    model = TensorFlow.Sequential([TensorFlow.Dense((3,), 1)])
    model.compile("sgd", "mse")
    history = model.fit(np.zeros((4, 3)), np.zeros(4), epochs=2, verbose=0)
    assert isinstance(history, keras.callbacks.History)
    assert history.history["loss"] == [0.0, 0.0]


def test_a_model_from_tensors_fits_too() -> None:
    inputs = TensorFlow.Input((3,))
    model = TensorFlow.Model(inputs, TensorFlow.Dense(1)(inputs))
    assert isinstance(model, TensorFlow.Model)
    assert "ClusterFit" in [cls.__name__ for cls in type(model).__mro__]
    assert model.predict(np.zeros((2, 3)), verbose=0).shape == (2, 1)


def test_a_derived_model_still_works_after_one_from_tensors() -> None:
    class Own(TensorFlow.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.dense = TensorFlow.Dense(2)

        def call(self, inputs: Any) -> Any:
            return self.dense(inputs)

    assert Own()(np.zeros((1, 3))).shape == (1, 2)


@pytest.mark.parametrize("kind", ["Sequential", "Model"])
def test_a_saved_model_opens_in_plain_keras(kind: str, tmp_path: Path) -> None:
    if kind == "Sequential":
        model = TensorFlow.Sequential([TensorFlow.Dense((3,), 1)])
    else:
        inputs = TensorFlow.Input((3,))
        model = TensorFlow.Model(inputs, TensorFlow.Dense(1)(inputs))
    model.save(tmp_path / "model.keras")
    opened = keras.saving.load_model(tmp_path / "model.keras")
    assert type(opened).__module__.startswith("keras.")
    data = np.ones((2, 3), np.float32)
    np.testing.assert_array_equal(opened(data), model(data))
