"""The toy with a sparse table in a Keras model."""

import keras
from served_toy import served
from table_toy import ids, words
from toy import Arrays, Data, TrainJob, labels

from leptonai.training.parameter_server.tables.spec import Table
from leptonai.training.tensorflow.embedding import ShardedEmbedding


def net(table: Table) -> keras.Model:
    inputs = keras.Input((4,), dtype="int64")
    return keras.Model(inputs, keras.layers.Dense(3)(ShardedEmbedding(table, mode="sum")(inputs)))


def tabled(consistency: str = "bsp", table: Table | None = None, **changes: object) -> TrainJob:
    settings: dict[str, object] = {
        "model": lambda: net(table or words()),
        "data": Data(train=Arrays(ids, labels), evaluate=Arrays(ids[:50], labels[:50])),
    }
    return served(consistency, **{**settings, **changes})
