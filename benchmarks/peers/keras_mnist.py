"""MNIST to 99 % in plain Keras on TensorFlow, as its MNIST example has it: ``fit``, Adam 1e-3, batch 128.

One process with TensorFlow's own choice of threads. The network is that of ``examples/mnist`` with the same
distribution of starting weights (PyTorch's).
"""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from numpy.typing import NDArray

from benchmarks.peers.report import Arguments, Reporter, read_arguments


def network() -> Any:
    """The layers of ``examples/mnist``, written out, channels last as TensorFlow wants them on a CPU."""
    return keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(8, 5, **start(25)),
            keras.layers.MaxPooling2D(),
            keras.layers.ReLU(),
            keras.layers.Conv2D(32, 5, **start(8 * 25)),
            keras.layers.MaxPooling2D(),
            keras.layers.ReLU(),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu", **start(512)),
            keras.layers.Dense(10, **start(128)),
        ]
    )


def start(fan_in: int) -> dict[str, Any]:
    """Weights and biases uniform within 1 / sqrt(fan_in), as PyTorch starts its layers."""
    bound = 1.0 / math.sqrt(fan_in)
    return {
        "kernel_initializer": keras.initializers.RandomUniform(-bound, bound),
        "bias_initializer": keras.initializers.RandomUniform(-bound, bound),
    }


class ReportEpochs(keras.callbacks.Callback):  # type: ignore[misc]
    """Writes the test accuracy after every epoch and stops once it is high enough."""

    def __init__(self, reporter: Reporter, *, enough: float) -> None:
        super().__init__()
        self._reporter, self._enough = reporter, enough

    def on_epoch_begin(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        self._began = time.perf_counter()

    def on_test_begin(self, logs: dict[str, float] | None = None) -> None:
        self._trained_seconds = time.perf_counter() - self._began

    def on_epoch_end(self, epoch: int, logs: dict[str, float] | None = None) -> None:
        measured = (logs or {})["val_accuracy"]
        self._reporter.epoch(epoch + 1, seconds=self._trained_seconds, accuracy=measured)
        if measured >= self._enough:
            self.model.stop_training = True


def images(folder: Path, split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images in [0, 1] with a channel axis, and labels."""
    pixels = np.load(folder / f"{split}_bytes.npy")
    return pixels[..., None].astype("float32") / 255.0, np.load(folder / f"{split}_labels.npy")


def train(arguments: Arguments) -> None:
    """Fit until the test accuracy measured after an epoch is high enough, or ``epochs`` are over."""
    keras.utils.set_random_seed(arguments.seed)
    x_train, y_train = images(arguments.data, "train")
    x_test, y_test = images(arguments.data, "test")
    model = network()
    model.compile(
        optimizer=keras.optimizers.Adam(1e-3),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    reporter = Reporter(arguments.report)
    model.fit(
        x_train,
        y_train,
        batch_size=128,
        epochs=arguments.epochs,
        validation_data=(x_test, y_test),
        callbacks=[ReportEpochs(reporter, enough=arguments.accuracy)],
        verbose=2,
    )
    reporter.close()


if __name__ == "__main__":
    train(read_arguments())
