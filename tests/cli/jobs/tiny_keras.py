"""A Keras model that trains in a second."""

import keras
import numpy as np

from leptonai import SGD, Arrays, Data, TrainJob


def create_model() -> keras.Model:
    return keras.Sequential(
        [keras.Input((8,)), keras.layers.Dense(4, activation="relu"), keras.layers.Dense(2)]
    )


def load_data() -> Data:
    inputs = np.random.default_rng(7).normal(size=(32, 8)).astype(np.float32)
    return Data(train=Arrays(inputs, (inputs[:, 0] > 0).astype(np.int64)))


job = TrainJob(
    model=create_model,
    data=load_data,
    loss="cross_entropy",
    optimizer=SGD(lr=0.1),
    steps=2,
    global_batch_size=16,
    precision="float32",
)
