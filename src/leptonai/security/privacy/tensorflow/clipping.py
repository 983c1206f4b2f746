"""Vectorised per-example gradients of a Keras model, clipped and summed.

B is the number of examples of a pass, P of trainable numbers, L of variables that hold them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

_CHUNK_BYTES = 64 << 20
"""Of per-example gradients that exist at once."""

_MARGIN = 1.0 - 2.0**-20
"""Norms are computed in float32: cut a little below the bound, so that rounding cannot exceed it."""


class KerasClipper:
    """Sums per-example gradients of which none has a norm above the clip; see the PyTorch ``Clipper``.

    Args:
        variables: the trainable ones, in the order of the flat sum.
        clipping: ``flat`` or ``per_layer``; for the latter each variable counts as a layer.

    Attributes:
        sum_P: float32 sum since :meth:`zero`.
        num_within: examples since :meth:`zero` whose norm was at most the clip.
    """

    def __init__(self, variables: Sequence[Any], *, clipping: Literal["flat", "per_layer"] = "flat") -> None:
        self._variables, self._clipping = list(variables), clipping
        self._sizes = [math.prod(variable.shape) for variable in variables]
        self._compiled: dict[Any, Any] = {}
        self.sum_P: NDArray[np.float32] = np.zeros(sum(self._sizes), np.float32)
        self.num_within = 0

    def zero(self) -> None:
        """Forget all examples so far."""
        self.sum_P[:] = 0.0
        self.num_within = 0

    def add(self, loss: Callable[[Any], Any], columns: tuple[Any, ...], clip: float) -> None:
        """Add the clipped gradients of some examples; one whose gradient is not finite adds 0.

        Args:
            loss: mean loss of columns like these, computed through the model.
            columns: arrays with the examples in their first dimension.
        """
        num_rows = max(1, _CHUNK_BYTES // (4 * max(1, len(self.sum_P))))
        for start in range(0, len(columns[0]), num_rows):
            chunk = tuple(column[start : start + num_rows] for column in columns)
            sum_P, within = self._function(loss, chunk)(chunk, np.float32(clip))
            self.sum_P += sum_P.numpy()
            self.num_within += int(within)

    def _function(self, loss: Callable[[Any], Any], columns: tuple[Any, ...]) -> Any:
        key = tuple((str(column.dtype), tuple(column.shape[1:])) for column in columns)
        if key not in self._compiled:
            specs = tuple(tf.TensorSpec((None, *column.shape[1:]), column.dtype) for column in columns)
            self._compiled[key] = tf.function(
                lambda given, clip: self._clipped(loss, given, clip),
                input_signature=[specs, tf.TensorSpec((), tf.float32)],
                autograph=False,
            )
        return self._compiled[key]

    def _clipped(self, loss: Callable[[Any], Any], columns: Any, clip: Any) -> tuple[Any, Any]:
        def one(example: Any) -> Any:
            with tf.GradientTape() as tape:
                value = loss(tuple(column[None] for column in example))
            grads = tape.gradient(value, self._variables)
            return [
                tf.reshape(_dense(grad, var), [-1]) for grad, var in zip(grads, self._variables, strict=True)
            ]

        grads = tf.vectorized_map(one, columns)  # L of (B, its size)
        squares_BL = tf.stack([tf.reduce_sum(tf.square(grad), axis=1) for grad in grads], axis=1)
        norms_B = tf.sqrt(tf.reduce_sum(squares_BL, axis=1))
        finite_B = tf.math.is_finite(norms_B)
        if self._clipping == "per_layer":
            bounds_BL, share = tf.sqrt(squares_BL), clip / math.sqrt(len(self._variables))
        else:
            bounds_BL, share = tf.repeat(norms_B[:, None], len(self._variables), axis=1), clip
        factors_BL = tf.where(finite_B[:, None], tf.minimum(1.0, share * _MARGIN / bounds_BL), 0.0)
        parts = [
            tf.linalg.matvec(tf.where(finite_B[:, None], grad, 0.0), factors_BL[:, place], transpose_a=True)
            for place, grad in enumerate(grads)
        ]
        within = tf.reduce_sum(tf.cast(norms_B <= clip, tf.int32))
        return tf.concat(parts, axis=0), within


def _dense(grad: Any, variable: Any) -> Any:
    """A gradient as a float32 tensor: zeros where the loss does not depend on the variable."""
    if grad is None:
        return tf.zeros(variable.shape)
    return tf.cast(tf.convert_to_tensor(grad), tf.float32)
