# mypy: disable-error-code="no-untyped-call,no-untyped-def"
"""The program of the SDK's promise, as a user writes it, with loading before it and measuring after it."""

import time

import numpy as np

from benchmarks.peers.report import Reporter, read_arguments
from leptonai import TensorFlow

arguments = read_arguments()


def load(split: str, num_images: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    pixels = np.load(arguments.data / f"{split}_bytes.npy")[:num_images]
    return pixels[..., None].astype("float32") / 255.0, np.load(arguments.data / f"{split}_labels.npy")[
        :num_images
    ]


train_data, train_labels = load("train", arguments.examples or None)
began = time.perf_counter()


# The program itself, from here.
def create_model(input_shape):
    model = TensorFlow.Sequential(
        [
            TensorFlow.Conv2D(input_shape, 64, 3, activation="relu"),
            TensorFlow.MaxPooling2D(pool_size=(2, 2)),
            TensorFlow.Flatten(),
            TensorFlow.Dense(128, activation="relu"),
            TensorFlow.Dense(10, activation="softmax"),
        ]
    )
    return model


cluster = TensorFlow.TFCluster("cluster.yaml")
model = create_model((28, 28, 1))
with TensorFlow.TFCluster("cluster.yaml"):
    model.fit(train_data, train_labels, epochs=10, batch_size=32)
# To here.

seconds = time.perf_counter() - began
test_data, test_labels = load("test")
reporter = Reporter(arguments.report)
reporter.epoch(10, seconds=seconds, accuracy=model.evaluate(test_data, test_labels, verbose=0)[1])
reporter.close()
