"""``tf.data`` inputs, and models made ready for a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leptonai.core.errors import InputError
from leptonai.sdk.arguments import examples_from

keras = pytest.importorskip("keras")
tf = pytest.importorskip("tensorflow")

from leptonai.sdk.keras_compile import last_activation, ready_to_train  # noqa: E402
from leptonai.sdk.keras_data import Given, given  # noqa: E402


def one_input() -> Any:
    return keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])


def numbers(num_examples: int = 10) -> Any:
    x = np.arange(2.0 * num_examples, dtype=np.float32).reshape(num_examples, 2)
    return tf.data.Dataset.from_tensor_slices((x, np.arange(num_examples) % 3))


def take(x: Any, folder: Path, *, y: Any = None, num_batches: int | None = None) -> Given:
    return given(x, y, None, model=one_input(), where="fit", folder=folder, num_batches=num_batches)


def test_a_data_set_is_read_once_into_columns(tmp_path: Path) -> None:
    found = take(numbers().shuffle(10, seed=1).batch(4), tmp_path)
    assert found.batch_size == 4
    assert sorted(found.examples.inputs[0][:, 0].tolist()) == [2.0 * place for place in range(10)]
    assert [int(row[0]) // 2 % 3 for row in found.examples.inputs[0]] == found.examples.labels.tolist()


def test_weights_of_a_data_set_are_kept(tmp_path: Path) -> None:
    data = numbers().map(lambda x, y: (x, y, x[0])).batch(5)
    found = take(data, tmp_path).examples
    assert found.weights is not None
    assert found.weights.tolist() == found.inputs[0][:, 0].tolist()


def test_an_endless_data_set_needs_a_number_of_steps(tmp_path: Path) -> None:
    endless = numbers().batch(5).repeat()
    assert len(take(endless, tmp_path, num_batches=3).examples) == 15
    with pytest.raises(InputError, match="never ends"):
        take(endless, tmp_path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: numbers(), "not batched"),
        (lambda: numbers().batch(4).map(lambda x, y: x), r"\(x, y\)"),
        (lambda: numbers().batch(4).filter(lambda x, y: False), "no batch"),
        (lambda: numbers().batch(4).concatenate(numbers().batch(5)), "differ in size"),
        (lambda: iter([1]), "list_iterator cannot be taken"),
    ],
)
def test_data_that_cannot_be_taken_is_refused(make: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        take(make(), tmp_path)


def test_a_py_dataset_is_refused(tmp_path: Path) -> None:
    class Mine(keras.utils.PyDataset):  # type: ignore[misc]
        def __len__(self) -> int:
            return 1

        def __getitem__(self, index: int) -> Any:
            return np.zeros((2, 2)), np.zeros(2)

    with pytest.raises(InputError, match="Mine cannot be taken to a cluster"):
        take(Mine(), tmp_path)


@pytest.mark.parametrize(
    ("last", "labels", "loss"),
    [
        ((3, "softmax"), [0, 2], "SparseCategoricalCrossentropy"),
        ((3, None), np.eye(3)[:2], "CategoricalCrossentropy"),
        ((1, "sigmoid"), [0, 1], "BinaryCrossentropy"),
        ((1, None), [0.5, 0.1], "MeanSquaredError"),
    ],
)
def test_an_uncompiled_model_gets_adam_and_the_loss_that_fits(last: Any, labels: Any, loss: str) -> None:
    model = keras.Sequential([keras.layers.Dense(*last)])
    ready_to_train(model, examples_from(np.zeros((2, 4)), labels, where="fit"))
    assert isinstance(model.optimizer, keras.optimizers.Adam)
    assert type(model.loss).__name__ == loss


def test_the_activation_of_the_output_is_seen_through_a_layer_of_its_own() -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3), keras.layers.Softmax()])
    assert last_activation(model) == "softmax"
    assert last_activation(one_input()) == "other"


def test_a_compiled_model_keeps_its_loss() -> None:
    model = one_input()
    model.compile("sgd", "mae")
    ready_to_train(model, examples_from(np.zeros((2, 2)), np.zeros((2, 3)), where="fit"))
    assert model.loss == "mae"


def test_metrics_that_are_no_mean_are_refused_by_name() -> None:
    model = one_input()
    model.compile("sgd", "mse", metrics=[keras.metrics.AUC(name="area")])
    with pytest.raises(InputError, match="'area' is not a mean"):
        ready_to_train(model, examples_from(np.zeros((2, 2)), np.zeros((2, 3)), where="fit"))


def test_several_outputs_and_own_training_steps_are_refused() -> None:
    inputs = keras.Input((2,))
    outputs = [keras.layers.Dense(1)(inputs), keras.layers.Dense(1)(inputs)]
    examples = examples_from(np.zeros((2, 2)), [0, 1], where="fit")
    with pytest.raises(InputError, match="2 outputs"):
        ready_to_train(keras.Model(inputs, outputs), examples)

    class Own(keras.Sequential):  # type: ignore[misc]
        def train_step(self, data: Any) -> Any:
            return {}

    with pytest.raises(InputError, match="overrides train_step"):
        ready_to_train(Own([keras.layers.Dense(1)]), examples)
