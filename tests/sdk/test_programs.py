"""Whole programs, as a user writes them, on real images and two workers."""

from __future__ import annotations

import importlib.util
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tests.sdk.conftest import mnist

from leptonai.core.errors import InputError

NUM_IMAGES = 4000
TENSORFLOW_PROGRAM = """
from leptonai import TensorFlow, PyTorch
def create_model(input_shape):
    model = TensorFlow.Sequential([
        TensorFlow.Conv2D(input_shape, 64, 3, activation='relu'),
        TensorFlow.MaxPooling2D(pool_size=(2, 2)),
        TensorFlow.Flatten(),
        TensorFlow.Dense(128, activation='relu'),
        TensorFlow.Dense(10, activation='softmax')
    ])
    return model
cluster = TensorFlow.TFCluster("cluster.yaml")
model = create_model((28, 28, 1))
with TensorFlow.TFCluster("cluster.yaml"):
    model.fit(train_data, train_labels, epochs=10, batch_size=32)
"""
PYTORCH_PROGRAM = """
from leptonai import PyTorch
model = PyTorch.Sequential([
    PyTorch.Conv2d(1, 16, 3), PyTorch.ReLU(), PyTorch.MaxPool2d(2), PyTorch.Flatten(), PyTorch.LazyLinear(10)
])
with PyTorch.Cluster("cluster.yaml"):
    history = model.fit(train_data, train_labels, epochs=10, batch_size=32, validation_split=0.1)
"""
needs_tensorflow = pytest.mark.skipif(importlib.util.find_spec("keras") is None, reason="needs TensorFlow")


def run_program(program: str, *, epochs: int, shape: tuple[int, ...]) -> dict[str, Any]:
    """The program as written, but for the number of epochs and the loading of its data."""
    assert program.count("epochs=10") == 1
    images, labels = mnist(NUM_IMAGES)
    names: dict[str, Any] = {"train_data": images.reshape(-1, *shape), "train_labels": labels}
    exec(program.replace("epochs=10", f"epochs={epochs}"), names)
    return names


@needs_tensorflow
def test_the_keras_program_trains_on_the_cluster_and_leaves_the_weights_in_the_model(workplace: Path) -> None:
    names = run_program(TENSORFLOW_PROGRAM, epochs=1, shape=(28, 28, 1))
    model, images, labels = names["model"], names["train_data"], names["train_labels"]
    assert list(model.history.history) == ["accuracy", "loss"]
    loss, accuracy = model.evaluate(images, labels, verbose=0)
    assert accuracy > 0.85
    assert loss < model.history.history["loss"][0]
    predicted = model.predict(images[:500], verbose=0)
    assert (predicted.argmax(-1) == labels[:500]).mean() > 0.85
    (run_dir,) = (workplace / "runs").iterdir()
    assert (run_dir / "curve.png").is_file()


def test_the_pytorch_program_trains_on_the_cluster_and_leaves_the_weights_in_the_model(
    workplace: Path,
) -> None:
    names = run_program(PYTORCH_PROGRAM, epochs=2, shape=(1, 28, 28))
    model, history, images, labels = (names[n] for n in ("model", "history", "train_data", "train_labels"))
    assert sorted(history.history) == ["accuracy", "loss", "val_accuracy", "val_loss"]
    last = model.evaluate(images[3600:], labels[3600:])
    assert last["accuracy"] == pytest.approx(history.history["val_accuracy"][-1], abs=0.01)
    assert last["loss"] == pytest.approx(history.history["val_loss"][-1], rel=0.05)
    assert last["accuracy"] > 0.85
    assert (model.predict(images[:500]).argmax(-1) == labels[:500]).mean() > 0.85
    assert len(history.curve().axes) == 2


@needs_tensorflow
def test_callbacks_see_current_weights_and_their_changes_take_effect(workplace: Path) -> None:
    import keras

    from leptonai import TensorFlow

    images, labels = mnist(256)
    validation = (images[:100], labels[:100])
    seen: list[dict[str, Any]] = []

    class Watcher(keras.callbacks.Callback):  # type: ignore[misc]
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            loss, _ = self.model.evaluate(*validation, verbose=0)
            seen.append({**logs, "epoch": epoch, "measured": loss})
            weights.append(self.model.get_weights())
            if epoch == 2:
                self.model.stop_training = True

    model = TensorFlow.Sequential([TensorFlow.Flatten((28, 28)), TensorFlow.Dense(10)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
    weights = [model.get_weights()]
    still = keras.callbacks.LearningRateScheduler(lambda epoch: 1e-20 if epoch == 1 else 0.1)
    with TensorFlow.TFCluster("cluster.yaml", run_dir="run"):
        history = model.fit(
            images, labels, batch_size=64, epochs=5, verbose=0, callbacks=[still, Watcher()],
            validation_data=validation, class_weight={3: 2.0},
        )  # fmt: skip
    assert [entry["epoch"] for entry in seen] == history.epoch == [0, 1, 2]
    assert set(history.history) == {"accuracy", "loss", "val_accuracy", "val_loss", "learning_rate"}
    for entry in seen:
        assert entry["val_loss"] == pytest.approx(entry["measured"], rel=1e-4)
    moved = [not np.array_equal(a[0], b[0]) for a, b in itertools.pairwise(weights)]
    assert moved == [True, False, True]
    np.testing.assert_array_equal(model.get_weights()[0], weights[-1][0])
    assert int(model.optimizer.iterations) == 3 * 4


@needs_tensorflow
def test_own_layers_and_losses_reach_the_workers_and_equal_local_training(workplace: Path) -> None:
    import keras

    from leptonai import TensorFlow

    images, labels = mnist(64)

    class Scaled(keras.layers.Layer):  # type: ignore[misc]
        def __init__(self, factor: float = 2.0, **options: Any) -> None:
            super().__init__(**options)
            self.factor = factor

        def call(self, inputs: Any) -> Any:
            return inputs * self.factor

        def get_config(self) -> dict[str, Any]:
            return {**super().get_config(), "factor": self.factor}

    def squared_distance(labels: Any, outputs: Any) -> Any:
        return keras.ops.mean((keras.ops.one_hot(labels, 10) - outputs) ** 2, axis=-1)

    def build() -> Any:
        keras.utils.set_random_seed(1)
        model = TensorFlow.Sequential([TensorFlow.Flatten((28, 28)), Scaled(0.5), TensorFlow.Dense(10)])
        model.compile(keras.optimizers.Adam(0.01), squared_distance, metrics=[squared_distance])
        return model

    ours, theirs = build(), build()
    with TensorFlow.TFCluster("cluster.yaml"):
        for _ in range(2):  # the second goes on where the first ended
            history = ours.fit(images, labels, batch_size=64, epochs=2, verbose=0)
    theirs.fit(images, labels, batch_size=64, epochs=4, verbose=0)
    for one, other in zip(ours.get_weights(), theirs.get_weights(), strict=True):
        np.testing.assert_allclose(one, other, atol=1e-5)
    assert history.history["squared_distance"] == pytest.approx(history.history["loss"], rel=1e-5)


@needs_tensorflow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps_per_epoch": 1}, "make 2 steps"),
        ({"validation_split": 1.5}, "validation_split"),
        ({"validation_data": 3}, "validation_data"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"sample_weight": np.ones(3)}, "sample_weight"),
        ({"validation_steps": 0, "validation_data": (np.zeros((2, 3)), np.zeros(2))}, "validation_steps"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_arguments_that_cannot_be_honoured_are_refused(options: Any, message: str, workplace: Path) -> None:
    from leptonai import TensorFlow

    model = TensorFlow.Sequential([TensorFlow.Dense((3,), 1)])
    with TensorFlow.TFCluster("cluster.yaml"), pytest.raises(InputError, match=message):
        model.fit(np.zeros((4, 3)), np.zeros(4), **{"batch_size": 2, **options})
    assert not (workplace / "runs").exists()


def test_pytorch_outside_a_cluster_is_told_where_to_call() -> None:
    from leptonai import PyTorch

    with pytest.raises(InputError, match="fit needs a cluster"):
        PyTorch.fit(torch.nn.Linear(2, 1), np.zeros((4, 2)), np.zeros(4))


def test_pytorch_data_of_a_wrong_shape_is_told(workplace: Path) -> None:
    from leptonai import PyTorch

    with PyTorch.Cluster("cluster.yaml"), pytest.raises(InputError, match="cannot take this data"):
        PyTorch.fit(torch.nn.Linear(2, 1), np.zeros((4, 3)), np.zeros(4))
