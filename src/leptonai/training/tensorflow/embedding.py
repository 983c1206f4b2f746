"""A Keras layer whose rows live in a sparse table: on parameter servers, or in this process while there are none.

Letters: B examples, L ids of one example, U different ids of a batch, W numbers in a row.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from leptonai.core.errors import InputError, LeptonError
from leptonai.training.parameter_server.tables import gradients
from leptonai.training.parameter_server.tables.local import LocalTable
from leptonai.training.parameter_server.tables.spec import Table, as_ids

Mode = Literal["sum", "mean"]


class ShardedEmbedding(keras.layers.Layer):  # type: ignore[misc,unused-ignore]
    """Rows of a table by id, for tables larger than a worker's memory; eager and in ``tf.function``, not in XLA.

    The table is no weight of the layer: Keras optimisers and checkpoints do not see it. The layer has one weight,
    ``anchor``, a number that stays 0: gradients only flow through layers that have some. The table's own rule
    updates its rows, with what :meth:`collect` gives after a gradient was taken.

    Args:
        table: which rows. For one table at two places of a model use one layer twice, or bind both.
        mode: ``"sum"`` or ``"mean"`` over the L ids of an example; None: a row for each id.

    Attributes:
        problem: what the last lookup raised, which TensorFlow tells in its own words; empty if nothing.
    """

    def __init__(self, table: Table, mode: Mode | None = None, **options: Any) -> None:
        super().__init__(**options)
        if mode not in (None, "sum", "mean"):
            raise InputError(f"ShardedEmbedding: unknown mode {mode!r}", hint='"sum", "mean" or None')
        self.table, self.mode = table, mode
        self._bound: list[gradients.Rows] = []
        self._collected: list[tuple[NDArray[np.int64], NDArray[np.float32]]] = []
        # TensorFlow may run two uses of the layer at a time, a link serves one.
        self._turn = threading.Lock()
        self.problem: list[LeptonError] = []

    def build(self, input_shape: Any) -> None:
        """Make the anchor."""
        self.anchor = self.add_weight(shape=(), initializer="zeros", dtype="float32", name="anchor")
        self.built = True

    def bind(self, rows: gradients.Rows) -> None:
        """Take rows from there from now on. Raises InputError when that is another table."""
        gradients.check_same(self.table, rows)
        self._bound[:] = [rows]

    @property
    def rows(self) -> gradients.Rows:
        """Where rows come from; a table in this process if nothing was bound."""
        if not self._bound:
            self._bound.append(LocalTable(self.table))
        return self._bound[0]

    def call(self, ids: Any, training: bool = False) -> Any:
        """Rows (B, W) of ids (B,); of ids (B, L) their sum or mean (B, W), or without a mode (B, L, W)."""
        if not ids.dtype.is_integer:
            raise InputError(
                f"table {self.table.name!r}: an id must be a whole number, found {ids.dtype.name}",
                hint='keras.Input(..., dtype="int64")',
            )
        ids = tf.cast(ids, tf.int64)
        flat = tf.reshape(ids, [-1])
        ids_U, places = tf.unique(flat)
        rows_UW = self._lookup(ids_U, bool(training))
        rows = tf.reshape(tf.gather(rows_UW, places), tf.concat([tf.shape(ids), [self.table.width]], 0))
        rows = tf.ensure_shape(rows, [*ids.shape, self.table.width])
        if self.mode is None or len(ids.shape) == 1:
            return rows
        return tf.reduce_sum(rows, axis=1) if self.mode == "sum" else tf.reduce_mean(rows, axis=1)

    def compute_output_shape(self, input_shape: Any) -> tuple[Any, ...]:
        """Of :meth:`call`."""
        kept = input_shape[:1] if self.mode is not None else input_shape
        return (*kept, self.table.width)

    def collect(self) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """(ids, gradients) of each use of the layer that a gradient was taken through since the last call."""
        with self._turn:
            collected, self._collected[:] = list(self._collected), []
        return collected

    def _lookup(self, ids_U: Any, training: bool) -> Any:
        width = self.table.width

        def pull(ids: NDArray[np.int64]) -> NDArray[np.float32]:
            with self._turn:
                try:
                    return self.rows.pull(as_ids(self.table, ids), create=training)
                except LeptonError as error:
                    self.problem[:] = [error]
                    raise

        def keep(ids: NDArray[np.int64], found: NDArray[np.float32]) -> np.float32:
            with self._turn:
                self._collected.append((np.array(ids), np.array(found, np.float32)))
            return np.float32(0.0)

        @tf.custom_gradient
        def looked_up(anchor: Any) -> Any:
            rows_UW = tf.ensure_shape(tf.numpy_function(pull, [ids_U], tf.float32), [None, width])

            def backward(grads_UW: Any, variables: Any = None) -> Any:
                grads_UW = tf.convert_to_tensor(grads_UW)  # eager gathers hand slices back
                zero = tf.ensure_shape(tf.numpy_function(keep, [ids_U, grads_UW], tf.float32), [])
                return (zero, [None] * len(variables)) if variables else zero

            return rows_UW, backward

        return looked_up(tf.convert_to_tensor(self.anchor))


def tables_of(model: Any) -> list[ShardedEmbedding]:
    """The model's sharded embeddings, each once."""
    layers = model._flatten_layers() if isinstance(model, keras.layers.Layer) else []
    return list({id(layer): layer for layer in layers if isinstance(layer, ShardedEmbedding)}.values())


def bind_tables(model: Any, rows: Mapping[str, gradients.Rows]) -> None:
    """Bind every sharded embedding to what is named as its table: a ``TableLink``, or a ``LocalTable``.

    Raises:
        InputError: a table has no rows, or its values are others.
    """
    gradients.bind(tables_of(model), rows)


def push_tables(
    model: Any, *, sequence: int, lr_factor: float = 1.0, grouped: bool = False, scale: float = 1.0
) -> list[gradients.TableGradients]:
    """After a gradient was taken: push to every table, as one step; see ``tables.gradients`` for its parts.

    Args:
        scale: factor on the gradients.

    Returns:
        What was pushed, by which its answers are awaited: ``gradients.answers(pushed, sequence)``.
    """
    collected = gradients.collect(tables_of(model))
    gradients.push(collected, sequence=sequence, lr_factor=lr_factor, grouped=grouped, scale=scale)
    return collected


def apply_local(model: Any, *, lr_factor: float = 1.0, scale: float = 1.0) -> None:
    """After a gradient was taken in a single process: update the rows of its own tables.

    Raises:
        Fault: a gradient is not finite; then no table is changed.
    """
    gradients.apply_local(gradients.collect(tables_of(model)), lr_factor=lr_factor, scale=scale)
