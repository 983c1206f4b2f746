"""What Keras users give to ``fit`` as data: arrays, or a ``tf.data.Dataset`` read once into files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.sdk.arguments import Examples, examples_from


@dataclass(frozen=True, slots=True, kw_only=True)
class Given:
    """Examples, and the batch size they came with if they came in batches."""

    examples: Examples
    batch_size: int | None = None
    is_ordered: bool = False


def given(
    x: Any, y: Any, sample_weight: Any, *, model: Any, where: str, folder: Path, num_batches: int | None
) -> Given:
    """The examples behind what the caller gave.

    Args:
        folder: where a data set is written to, so that memory holds one batch of it at a time.
        num_batches: how many batches to take of a data set; None: all, which must end.

    Raises:
        InputError: the kind of data cannot be taken to a cluster, or it is wrong.
    """
    names = input_names(model)
    if isinstance(x, tf.data.Dataset):
        if y is not None or sample_weight is not None:
            raise InputError(
                f"{where}: a tf.data.Dataset holds its labels itself, leave y and sample_weight out"
            )
        return read_dataset(x, names=names, where=where, folder=folder, num_batches=num_batches)
    if _is_stream(x):
        raise InputError(
            f"{where}: a {type(x).__name__} cannot be taken to a cluster",
            hint="give arrays, memory-mapped arrays or a tf.data.Dataset",
        )
    return Given(examples=examples_from(x, y, sample_weight, where=where, input_names=names))


def input_names(model: Any) -> list[str]:
    """Names of the model's inputs, in order; empty when the model does not say."""
    try:
        return [tensor.name for tensor in model.inputs or ()]
    except (AttributeError, ValueError):
        return []


def _is_stream(x: Any) -> bool:
    if hasattr(x, "__array__") or isinstance(x, list | tuple | dict):
        return False
    return hasattr(x, "__next__") or hasattr(x, "__getitem__") or hasattr(x, "__iter__")


def read_dataset(
    dataset: Any, *, names: list[str], where: str, folder: Path, num_batches: int | None
) -> Given:
    """Go through a batched data set once and write its columns to files in ``folder``.

    Every epoch trains on what this one pass gave; random changes belong in layers.
    """
    cardinality = int(dataset.cardinality())
    if cardinality == tf.data.INFINITE_CARDINALITY and num_batches is None:
        raise InputError(
            f"{where}: the data set never ends", hint="give steps_per_epoch, or dataset.take(...)"
        )
    if num_batches is not None and cardinality < 0:
        dataset = dataset.take(num_batches)
    writers: list[_ColumnWriter] = []
    sizes: list[int] = []
    weighted = False
    for element in dataset.as_numpy_iterator():
        batch = _batch(element, names, where)
        weighted = batch.weights is not None
        columns = (*batch.inputs, *((batch.weights,) if batch.weights is not None else ()), batch.labels)
        if not writers:
            writers = [_ColumnWriter(folder / f"{where}-{i}.raw", column) for i, column in enumerate(columns)]
        for writer, column in zip(writers, columns, strict=True):
            writer.add(column, where)
        sizes.append(len(batch))
    if not sizes:
        raise InputError(f"{where}: the data set has no batch")
    if any(size != sizes[0] for size in sizes[:-1]) or sizes[-1] > sizes[0]:
        raise InputError(f"{where}: batches of the data set differ in size", hint="use dataset.batch(...)")
    *inputs, labels = [writer.finish() for writer in writers]
    weights = inputs.pop() if weighted else None
    examples = Examples(inputs=tuple(inputs), labels=labels, weights=weights)
    return Given(examples=examples, batch_size=sizes[0], is_ordered=not _shuffles(dataset))


def _batch(element: Any, names: list[str], where: str) -> Examples:
    if not isinstance(element, tuple) or len(element) not in (2, 3):
        raise InputError(f"{where}: expected a data set of (x, y) or (x, y, sample_weight) batches")
    x, y, *weights = element
    if np.ndim(y) == 0:
        raise InputError(f"{where}: the data set is not batched", hint="call dataset.batch(...) first")
    return examples_from(x, y, weights[0] if weights else None, where=where, input_names=names)


def _shuffles(dataset: Any) -> bool:
    """Whether some stage of the pipeline shuffles."""
    return "shuffle" in type(dataset).__name__.lower() or any(_shuffles(d) for d in dataset._inputs())


class _ColumnWriter:
    """One column on its way to a file."""

    def __init__(self, path: Path, first: NDArray[Any]) -> None:
        self._path, self._dtype, self._shape = path, first.dtype, first.shape[1:]
        self._file: BinaryIO = path.open("wb")
        self._length = 0

    def add(self, column: NDArray[Any], where: str) -> None:
        if column.shape[1:] != self._shape or column.dtype != self._dtype:
            self._file.close()
            raise InputError(f"{where}: examples of the data set differ in shape or type")
        self._file.write(np.ascontiguousarray(column).data)
        self._length += len(column)

    def finish(self) -> NDArray[Any]:
        self._file.close()
        return np.memmap(self._path, self._dtype, "r", shape=(self._length, *self._shape))
