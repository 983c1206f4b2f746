"""The SDK's program in plain Keras on TensorFlow: the same layers, data, epochs and batch, in one process."""

from __future__ import annotations

import time

import keras

from benchmarks.peers.keras_mnist import images
from benchmarks.peers.report import Arguments, Reporter, read_arguments


def train(arguments: Arguments) -> None:
    """Fit for ten epochs, then measure once."""
    keras.utils.set_random_seed(arguments.seed)
    x_train, y_train = images(arguments.data, "train")
    limit = arguments.examples or len(x_train)
    began = time.perf_counter()
    model = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            keras.layers.Conv2D(64, 3, activation="relu"),
            keras.layers.MaxPooling2D(pool_size=(2, 2)),
            keras.layers.Flatten(),
            keras.layers.Dense(128, activation="relu"),
            keras.layers.Dense(10, activation="softmax"),
        ]
    )
    model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
    model.fit(x_train[:limit], y_train[:limit], epochs=10, batch_size=32, verbose=2)
    seconds = time.perf_counter() - began
    x_test, y_test = images(arguments.data, "test")
    reporter = Reporter(arguments.report)
    reporter.epoch(10, seconds=seconds, accuracy=model.evaluate(x_test, y_test, verbose=0)[1])
    reporter.close()


if __name__ == "__main__":
    train(read_arguments())
