"""The data given to ``fit`` as plain columns, cut and weighted as Keras would."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError

Array = NDArray[Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Columns of equal length: one or more inputs, the labels, and maybe a weight for each example."""

    inputs: tuple[Array, ...]
    labels: Array
    weights: Array | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def cut(self, part: slice) -> Examples:
        """Some of the examples, without copying them."""
        return Examples(
            inputs=tuple(column[part] for column in self.inputs),
            labels=self.labels[part],
            weights=None if self.weights is None else self.weights[part],
        )


def examples_from(
    x: Any, y: Any, sample_weight: Any = None, *, where: str, input_names: Sequence[str] = ()
) -> Examples:
    """Arrays, or anything numpy takes for one, as examples.

    Args:
        x: one array, a list of arrays (a model with several inputs), or a mapping from input name to array.
        y: labels.
        sample_weight: one number an example, or None.
        where: for messages, such as ``"fit"``.
        input_names: names of the model's inputs, in order.

    Raises:
        InputError: something is missing, is no array, or lengths differ.

    >>> len(examples_from(np.zeros((3, 2)), [0, 1, 0], where="fit"))
    3
    """
    if x is None or y is None:
        raise InputError(f"{where}: expected both x and y", hint=f"{where}(images, labels)")
    inputs = tuple(as_array(column, f"{where}: x") for column in _columns(x, where, input_names))
    labels = as_array(y, f"{where}: y")
    weights = None if sample_weight is None else as_array(sample_weight, f"{where}: sample_weight")
    lengths = {len(column) for column in (*inputs, labels)}
    if len(lengths) > 1:
        raise InputError(
            f"{where}: x and y differ in length: {', '.join(map(str, sorted(lengths)))} examples"
        )
    if lengths == {0}:
        raise InputError(f"{where}: there are no examples")
    if weights is not None and weights.shape != (len(labels),):
        raise InputError(
            f"{where}: expected sample_weight of shape ({len(labels)},), found {weights.shape}",
            hint="give one weight an example",
        )
    return Examples(inputs=inputs, labels=labels, weights=_as_weights(weights))


def _columns(x: Any, where: str, input_names: Sequence[str]) -> list[Any]:
    if isinstance(x, Mapping):
        missing = [name for name in input_names if name not in x]
        if missing or len(x) != len(input_names):
            raise InputError(
                f"{where}: x has columns {', '.join(map(str, x))}, the model's inputs are {', '.join(input_names)}"
            )
        return [x[name] for name in input_names]
    several = isinstance(x, list | tuple) and len(x) == len(input_names) > 0
    # A list of rows is one array; a list of arrays is one array an input.
    if several and all(hasattr(column, "shape") for column in x):
        return list(x)
    return [x]


def as_array(value: Any, where: str) -> Array:
    """A numpy array with one entry an example; tensors of TensorFlow and PyTorch are taken too."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
    try:
        array = np.asarray(value) if not isinstance(value, np.memmap) else value
    except (TypeError, ValueError) as error:
        raise InputError(f"{where} cannot be made an array: {error}") from error
    if array.dtype.hasobject or array.dtype.kind in "USmM":
        raise InputError(
            f"{where}: expected numbers, found {type(value).__name__} of {array.dtype}",
            hint="generators and data loaders are not taken; give arrays or a tf.data.Dataset",
        )
    if array.ndim == 0:
        raise InputError(f"{where}: expected one entry an example, found a single number")
    return array


def _as_weights(weights: Array | None) -> Array | None:
    return None if weights is None else weights.astype(np.float32)


def split(examples: Examples, share: float) -> tuple[Examples, Examples]:
    """The examples before and in the last ``share`` of them, as Keras's ``validation_split`` cuts.

    Raises:
        InputError: the share is outside (0, 1) or leaves one side empty.
    """
    if not 0.0 < share < 1.0:
        raise InputError(f"fit: expected validation_split between 0 and 1, found {share}")
    at = math.floor(len(examples) * (1.0 - share))
    if at in (0, len(examples)):
        raise InputError(f"fit: validation_split={share} of {len(examples)} examples leaves one side empty")
    return examples.cut(slice(0, at)), examples.cut(slice(at, None))


def with_class_weight(examples: Examples, class_weight: Mapping[int, float] | None) -> Examples:
    """Each example's weight times that of its class; classes not named count 1.

    >>> found = with_class_weight(examples_from(np.zeros((2, 1)), [0, 1], where="fit"), {1: 3.0})
    >>> found.weights.tolist()
    [1.0, 3.0]
    """
    if not class_weight:
        return examples
    labels = examples.labels
    if labels.ndim == 2 and labels.shape[1] > 1:
        classes = labels.argmax(axis=1)
    elif labels.ndim == 1 or labels.shape[1:] == (1,):
        classes = labels.reshape(-1)
    else:
        raise InputError(
            f"fit: class_weight needs one label an example, found labels of shape {labels.shape}"
        )
    weights = np.ones(len(labels), np.float32) if examples.weights is None else examples.weights.copy()
    for number, weight in class_weight.items():
        weights[classes == number] *= weight
    return replace(examples, weights=weights)


def weighted(examples: Examples) -> Examples:
    """The examples with a weight each: their own, or 1."""
    if examples.weights is not None:
        return examples
    return replace(examples, weights=np.ones(len(examples), np.float32))


def check_count(name: str, value: Any, *, smallest: int = 1) -> int:
    """A whole number of at least ``smallest``.

    Raises:
        InputError: it is something else.
    """
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < smallest:
        raise InputError(f"fit: expected {name} to be a whole number >= {smallest}, found {value!r}")
    return int(value)


def check_steps(steps_per_epoch: int | None, num_examples: int, batch_size: int) -> None:
    """Raise InputError unless ``steps_per_epoch`` is what a pass over the examples takes anyway."""
    natural = -(-num_examples // batch_size)
    if steps_per_epoch is not None and check_count("steps_per_epoch", steps_per_epoch) != natural:
        raise InputError(
            f"fit: steps_per_epoch={steps_per_epoch}, but {num_examples} examples in batches of {batch_size} "
            f"make {natural} steps, and an epoch on a cluster is one pass over them",
            hint="leave steps_per_epoch out, or change epochs or the data",
        )
