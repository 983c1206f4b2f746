"""The Keras ``ShardedEmbedding``: eager, compiled, against ``keras.layers.Embedding``."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from leptonai.core.errors import InputError
from leptonai.training.parameter_server.tables.local import LocalTable
from leptonai.training.parameter_server.tables.spec import RowAdagrad, RowSGD, Table

keras = pytest.importorskip("keras")
import tensorflow as tf  # noqa: E402

from leptonai.training.tensorflow.embedding import (  # noqa: E402
    ShardedEmbedding,
    apply_local,
    bind_tables,
    tables_of,
)


def table(**changes: object) -> Table:
    values: dict[str, object] = {"name": "t", "width": 4, "num_rows": 40, "rule": RowSGD(lr=0.5)}
    return Table(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("compiled", [False, True])
def test_gradients_equal_those_of_a_dense_embedding(compiled: bool) -> None:
    ours = ShardedEmbedding(table(), mode="sum")
    start = ours.rows.pull(np.arange(40))
    weight = tf.Variable(start)
    ids = tf.constant([[1, 2, 2], [2, 7, 9]])

    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(ours(ids, training=True) ** 2)
        return tape.gradient(loss, ours.trainable_variables)

    ours.build(ids.shape)
    anchor = (tf.function(step) if compiled else step)()
    assert float(anchor[0]) == 0.0
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(tf.reduce_sum(tf.gather(weight, ids), axis=1) ** 2)
    expected = tf.convert_to_tensor(tape.gradient(loss, weight)).numpy()
    apply_local(ours)
    np.testing.assert_allclose(ours.rows.pull(np.arange(40)), start - 0.5 * expected, rtol=1e-5, atol=1e-7)
    assert ours.collect() == []


def test_training_lowers_the_loss_in_a_functional_model() -> None:
    keras.utils.set_random_seed(0)
    inputs = keras.Input((3,), dtype="int64")
    rows = ShardedEmbedding(table(rule=RowAdagrad(lr=0.3)), mode="mean")(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1)(rows))
    optimizer = keras.optimizers.Adam(0.05)
    ids, labels = np.arange(36).reshape(12, 3), (np.arange(12) % 2).astype(np.float32)[:, None]

    @tf.function
    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(ids, training=True) - labels) ** 2)
        grads = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(grads, model.trainable_variables)
        return loss

    losses = []
    for _ in range(40):
        losses.append(float(step()))
        apply_local(model)
    assert losses[-1] < 0.1 * losses[0]
    model(np.array([[37, 38, 39]]), training=False)
    assert isinstance(tables_of(model)[0].rows, LocalTable)
    assert tables_of(model)[0].rows.storage.num_rows == 36


def test_bad_use() -> None:
    layer = ShardedEmbedding(table())
    with pytest.raises(InputError, match="whole number"):
        layer(tf.constant([1.0]))
    with pytest.raises(InputError, match="no link"):
        bind_tables(keras.Sequential([keras.Input((2,), dtype="int64"), layer]), {})
