"""Clipped sums of Keras models against one example at a time in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow", reason="TensorFlow is an extra")

from leptonai.core.errors import Refused  # noqa: E402
from leptonai.security.privacy.tensorflow.clipping import KerasClipper  # noqa: E402
from leptonai.security.privacy.tensorflow.refusals import check_model  # noqa: E402

layers = tf.keras.layers

MODELS: dict[str, tuple[list[Any], tuple[int, ...]]] = {
    "dense": ([layers.Dense(8, "tanh"), layers.Dense(3)], (5,)),
    "convolution": ([layers.Conv2D(4, 3, 2, "same", activation="relu"), layers.Flatten(), layers.Dense(3)], (8, 8, 2)),
    "normalisation": (
        [layers.Dense(6), layers.LayerNormalization(), layers.GroupNormalization(2), layers.Dense(3)], (5,)
    ),
    "recurrent": ([layers.LSTM(5), layers.Dense(3)], (4, 3)),
    "embedding": ([layers.Embedding(9, 4), layers.GlobalAveragePooling1D(), layers.Dense(3)], (6,)),
}  # fmt: skip


def build(name: str) -> tuple[Any, Any, tuple[Any, Any]]:
    tf.keras.utils.set_random_seed(0)
    parts, shape = MODELS[name]
    model = tf.keras.Sequential(
        [layers.Input(shape), *(type(part).from_config(part.get_config()) for part in parts)]
    )
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(7, *shape)).astype(np.float32)
    if name == "embedding":
        inputs = rng.integers(0, 9, size=(7, *shape)).astype(np.float32)
    labels = rng.integers(0, 3, size=7)

    def loss(columns: Any) -> Any:
        given, wanted = columns
        found = model(given, training=True)
        return tf.reduce_mean(
            tf.keras.losses.sparse_categorical_crossentropy(wanted, found, from_logits=True)
        )

    return model, loss, (inputs, labels)


def one_by_one(model: Any, loss: Any, columns: tuple[Any, Any], clip: float) -> np.ndarray:
    total = np.zeros(sum(int(np.prod(each.shape)) for each in model.trainable_variables))
    for index in range(len(columns[0])):
        with tf.GradientTape() as tape:
            value = loss(tuple(column[index : index + 1] for column in columns))
        grads = [tf.convert_to_tensor(grad) for grad in tape.gradient(value, model.trainable_variables)]
        flat = np.concatenate([np.asarray(grad, np.float64).ravel() for grad in grads])
        total += flat * min(1.0, clip / np.linalg.norm(flat))
    return total


@pytest.mark.parametrize("name", list(MODELS))
def test_the_clipped_sum_is_that_of_single_examples(name: str) -> None:
    model, loss, columns = build(name)
    clipper = KerasClipper(model.trainable_variables)
    clipper.add(loss, columns, 0.7)
    expected = one_by_one(model, loss, columns, 0.7)
    assert np.linalg.norm(clipper.sum_P - expected) <= 1e-5 * np.linalg.norm(expected)


def test_an_example_without_a_finite_gradient_adds_nothing_and_spoils_nothing() -> None:
    model, loss, (inputs, labels) = build("dense")
    without = KerasClipper(model.trainable_variables)
    without.add(loss, (inputs[1:], labels[1:]), 0.7)
    inputs[0] = np.nan
    clipper = KerasClipper(model.trainable_variables)
    clipper.add(loss, (inputs, labels), 0.7)
    np.testing.assert_allclose(clipper.sum_P, without.sum_P, rtol=1e-5, atol=1e-7)
    assert clipper.num_within == without.num_within


def test_per_layer_no_variable_exceeds_its_share() -> None:
    model, loss, (inputs, labels) = build("dense")
    clipper = KerasClipper(model.trainable_variables, clipping="per_layer")
    clipper.add(loss, (inputs[:1] * 100, labels[:1]), 1.0)
    start = 0
    for variable in model.trainable_variables:
        size = int(np.prod(variable.shape))
        assert np.linalg.norm(clipper.sum_P[start : start + size]) <= 0.5
        start += size


def test_layers_that_mix_examples_are_refused_with_their_substitute() -> None:
    model = tf.keras.Sequential([layers.Input((4,)), layers.Dense(3), layers.BatchNormalization()])
    with pytest.raises(Refused, match="batch_normalization") as found:
        check_model(model)
    assert "GroupNormalization" in str(found.value.hint)
