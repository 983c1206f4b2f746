"""Examples as values: columns of equal length, taken by index, and what is done to a batch of them."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.training.data.draws import Draws
from leptonai.training.learner import Batch

Prepare = Callable[[Batch], Batch]
"""What is done to every batch, of training and evaluation alike, after augmentation."""

Augment = Callable[[Batch, Draws], Batch]
"""What is done to training batches only, with random numbers that do not depend on the number of workers."""

# Enough to tell data sets apart, little enough to read from a slow disk at the start of every run.
_FINGERPRINT_BYTES = 1 << 20
_CHUNK_BYTES = 8 << 20


class Column(Protocol):
    """Examples reached by index; ``shape`` and ``dtype`` are those of one example."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def dtype(self) -> np.dtype[Any]: ...

    def __len__(self) -> int: ...

    def take(self, indices: NDArray[np.int64], /) -> NDArray[Any]:
        """The examples at ``indices``, in that order, as one new array."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class ArrayColumn:
    """A numpy array, in memory or memory-mapped, as a column."""

    array: NDArray[Any]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape[1:]

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.array.dtype

    def __len__(self) -> int:
        return len(self.array)

    def take(self, indices: NDArray[np.int64], /) -> NDArray[Any]:
        # A memory map would hand out memory maps, which are slower in all that follows.
        return np.asarray(self.array).take(indices, axis=0)


@dataclass(frozen=True, slots=True, eq=False)
class _First:
    """The first examples of another column."""

    column: Column
    length: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.column.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.column.dtype

    def __len__(self) -> int:
        return self.length

    def take(self, indices: NDArray[np.int64], /) -> NDArray[Any]:
        if len(indices) and not -self.length <= int(indices.min()) <= int(indices.max()) < self.length:
            raise IndexError(f"index out of range for {self.length} examples")
        return self.column.take(np.where(indices < 0, indices + self.length, indices))


@dataclass(frozen=True, slots=True, init=False, eq=False)
class Arrays:
    """One or more columns of equal length: inputs first, labels last.

    Args:
        columns: numpy arrays (memory-mapped ones too), anything numpy takes for one, or :class:`Column`
            values such as :class:`~leptonai.training.data.files.ArrayFiles`. The first axis counts examples.

    Raises:
        InputError: there is no column or no example, lengths differ, or a column is a scalar or of objects.

    >>> arrays = Arrays(np.arange(6).reshape(3, 2), np.array([0, 1, 0]))
    >>> len(arrays), arrays.shapes
    (3, ((2,), ()))
    >>> arrays.take(np.array([2, 0]))
    (array([[4, 5],
           [0, 1]]), array([0, 0]))
    """

    columns: tuple[Column, ...]

    def __init__(self, *columns: Any) -> None:
        if not columns:
            raise InputError("Arrays: expected at least one column", hint="write Arrays(images, labels)")
        object.__setattr__(
            self, "columns", tuple(_column(place, column) for place, column in enumerate(columns))
        )
        lengths = [len(column) for column in self.columns]
        if len(set(lengths)) > 1:
            raise InputError(f"Arrays: columns differ in length: {', '.join(map(str, lengths))} examples")
        if lengths[0] == 0:
            raise InputError(
                "Arrays: the data has no examples", hint="check the file or the filter it came from"
            )

    def __len__(self) -> int:
        return len(self.columns[0])

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shape of one example in each column."""
        return tuple(tuple(column.shape) for column in self.columns)

    @property
    def dtypes(self) -> tuple[np.dtype[Any], ...]:
        """Element type of each column."""
        return tuple(column.dtype for column in self.columns)

    def take(self, indices: NDArray[np.int64]) -> Batch:
        """The examples at ``indices``, in that order, one array a column."""
        return tuple(column.take(indices) for column in self.columns)

    def first(self, num_examples: int) -> Arrays:
        """The first ``num_examples`` examples (all, if there are fewer), without copying them."""
        if num_examples < 1:
            raise InputError(f"Arrays: expected num_examples >= 1, found {num_examples}")
        length = min(num_examples, len(self))
        return Arrays(*(_shortened(column, length) for column in self.columns))


def _column(place: int, column: Any) -> Column:
    if hasattr(column, "__array__"):
        array = column if isinstance(column, np.memmap) else np.asarray(column)
        if array.ndim == 0:
            raise InputError(f"Arrays: column {place} is a single number, expected one value an example")
        if array.dtype.hasobject:
            raise InputError(
                f"Arrays: column {place} holds Python objects",
                hint="convert it to an array of numbers of one shape",
            )
        return ArrayColumn(array)
    if all(hasattr(column, name) for name in ("__len__", "take", "shape", "dtype")):
        return cast(Column, column)
    raise InputError(
        f"Arrays: column {place} is a {type(column).__name__}, expected a numpy array or a Column",
        hint="wrap it in numpy.asarray(...)",
    )


def _shortened(column: Column, length: int) -> Column | NDArray[Any]:
    return column.array[:length] if isinstance(column, ArrayColumn) else _First(column, length)


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """What a job learns from.

    Args:
        train: the training examples.
        evaluate: examples to measure on, with the same number of columns; None: none are held out.
        prepare: applied in turn to every batch, such as :class:`~leptonai.training.data.prepare.Scale`.
        augment: applied in turn, before ``prepare``, to training batches only.
        origin: the examples that ``train`` was computed from, one for one, if it was: whose privacy a private run
            spends.

    Raises:
        InputError: the parts do not fit together.

    >>> data = Data(train=Arrays(np.zeros((4, 2), np.uint8), np.zeros(4, np.int64)))
    >>> data.fingerprint()["train"]["shapes"]
    [[2], []]
    """

    train: Arrays
    evaluate: Arrays | None = None
    prepare: tuple[Prepare, ...] = ()
    augment: tuple[Augment, ...] = ()
    origin: Arrays | None = None

    def __post_init__(self) -> None:
        for name in ("train", "evaluate", "origin"):
            found = getattr(self, name)
            if not isinstance(found, Arrays) and not (name != "train" and found is None):
                raise InputError(
                    f"Data: {name} is a {type(found).__name__}, expected Arrays",
                    hint="write Arrays(images, labels)",
                )
        counts = [len(part.columns) for part in (self.train, self.evaluate) if part is not None]
        if len(set(counts)) > 1:
            raise InputError(f"Data: train has {counts[0]} columns but evaluate has {counts[1]}")
        if self.origin is not None and len(self.origin) != len(self.train):
            raise InputError(
                f"Data: train has {len(self.train)} examples but origin has {len(self.origin)}",
                hint="origin holds what each training example was computed from, in the same order",
            )
        for name in ("prepare", "augment"):
            steps = getattr(self, name)
            if not isinstance(steps, tuple | list) or not all(callable(step) for step in steps):
                raise InputError(
                    f"Data: {name} must be a tuple of functions", hint=f"write {name}=(first, second)"
                )
            object.__setattr__(self, name, tuple(steps))

    def training_batch(self, indices: NDArray[np.int64], draws: Draws) -> Batch:
        """The training examples at ``indices``, augmented with ``draws`` (as long) and prepared."""
        batch = self.train.take(indices)
        for augment in self.augment:
            batch = augment(batch, draws)
        return self.prepared(batch)

    def evaluation_batch(self, indices: NDArray[np.int64]) -> Batch:
        """The evaluation examples at ``indices``, prepared."""
        if self.evaluate is None:
            raise InputError(
                "Data: there are no evaluation examples", hint="give Data(train=..., evaluate=...)"
            )
        return self.prepared(self.evaluate.take(indices))

    def prepared(self, batch: Batch) -> Batch:
        """``batch`` after every ``prepare`` step."""
        for prepare in self.prepare:
            batch = prepare(batch)
        return batch

    def fingerprint(self) -> dict[str, Any]:
        """JSON-ready values by which a resumed run recognises that it was given the same data.

        The digest covers a whole column of up to 1 MiB and evenly spaced examples of a larger one, so it is
        cheap and finds another data set, not a few changed pixels.
        """
        return {
            "train": _fingerprint(self.train),
            "evaluate": None if self.evaluate is None else _fingerprint(self.evaluate),
            "prepare": [_described(step) for step in self.prepare],
            "augment": [_described(step) for step in self.augment],
        }


def _fingerprint(arrays: Arrays) -> dict[str, Any]:
    digest = hashlib.blake2b(digest_size=16)
    for column in arrays.columns:
        example_bytes = max(1, column.dtype.itemsize * int(np.prod(column.shape)))
        num_rows = min(len(column), max(1, _FINGERPRINT_BYTES // example_bytes))
        rows = np.linspace(0, len(column) - 1, num_rows).round().astype(np.int64)
        digest.update(np.ascontiguousarray(column.take(rows)).data)
    return {
        "num_examples": len(arrays),
        "shapes": [list(shape) for shape in arrays.shapes],
        "dtypes": [dtype.str for dtype in arrays.dtypes],
        "digest": digest.hexdigest(),
    }


def _described(step: Callable[..., Any]) -> str:
    if dataclasses.is_dataclass(step):
        # A field that holds a function prints its address, which differs in every process.
        return re.sub(r" at 0x[0-9a-f]+", "", repr(step))
    return str(getattr(step, "__qualname__", type(step).__qualname__))


def label_range(arrays: Arrays) -> tuple[int, int] | None:
    """Smallest and largest value of the last column; None when it does not hold whole numbers.

    >>> label_range(Arrays(np.zeros((3, 2)), np.array([4, 0, 9])))
    (0, 9)
    """
    labels = arrays.columns[-1]
    if labels.dtype.kind not in "iu":
        return None
    extremes = [(int(chunk.min()), int(chunk.max())) for chunk in _chunks(labels) if chunk.size]
    if not extremes:
        return None
    return min(low for low, _ in extremes), max(high for _, high in extremes)


def _chunks(column: Column) -> Iterator[NDArray[Any]]:
    example_bytes = max(1, column.dtype.itemsize * int(np.prod(column.shape)))
    num_rows = max(1, _CHUNK_BYTES // example_bytes)
    for start in range(0, len(column), num_rows):
        stop = min(start + num_rows, len(column))
        if isinstance(column, ArrayColumn):
            yield column.array[start:stop]
        else:
            yield column.take(np.arange(start, stop, dtype=np.int64))
