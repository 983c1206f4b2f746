"""From the gradients that a model's sharded embeddings collected to pushes: the same for every framework.

A step goes: forward, backward, :func:`collect`, look whether all is finite, :func:`push`, later :func:`answers`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import Fault, InputError
from leptonai.training.parameter_server.link import Answer
from leptonai.training.parameter_server.tables.link import DEADLINE_SECONDS, TableLink
from leptonai.training.parameter_server.tables.local import LocalTable
from leptonai.training.parameter_server.tables.service import is_finite
from leptonai.training.parameter_server.tables.spec import Table


class Rows(Protocol):
    """Where an embedding's rows come from: a :class:`TableLink` or a :class:`LocalTable`."""

    @property
    def table(self) -> Table: ...

    def pull(
        self, ids: object, *, create: bool = True, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]: ...


class Embedding(Protocol):
    """A framework's sharded embedding."""

    @property
    def table(self) -> Table: ...

    @property
    def rows(self) -> Any: ...

    def bind(self, rows: Any, /) -> None: ...

    def collect(self) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]: ...


@dataclass(frozen=True, slots=True, eq=False)
class TableGradients:
    """What one step has for one table: ids (N,), maybe repeated, maybe none, and their gradients (N, width)."""

    rows: Any
    ids: NDArray[np.int64]
    gradients: NDArray[np.float32]


def check_same(table: Table, rows: Rows) -> None:
    """Raise InputError unless ``rows`` are of ``table``."""
    if rows.table != table:
        raise InputError(f"table {table.name!r} cannot be bound to rows of another: {rows.table.name!r}")


def bind(embeddings: Iterable[Embedding], rows: Mapping[str, Rows]) -> None:
    """Bind every embedding to the rows named as its table.

    Raises:
        InputError: a table has no rows, or its values are others.
    """
    for embedding in embeddings:
        name = embedding.table.name
        if name not in rows:
            raise InputError(
                f"table {name!r} has no link", hint=f"there are links for {', '.join(rows) or 'none'}"
            )
        embedding.bind(rows[name])


def collect(embeddings: Iterable[Embedding]) -> list[TableGradients]:
    """What was collected since the last call, one entry a table; entries without rows count as pushes, too."""
    parts: dict[int, tuple[Any, list[Any]]] = {}
    for embedding in embeddings:
        parts.setdefault(id(embedding.rows), (embedding.rows, []))[1].extend(embedding.collect())
    found = []
    for rows, pairs in parts.values():
        empty = np.zeros(0, np.int64), np.zeros((0, rows.table.width), np.float32)
        if len(pairs) == 1:
            found.append(TableGradients(rows, *pairs[0]))
        else:
            ids, gradients = (np.concatenate(each) for each in zip(empty, *pairs, strict=True))
            found.append(TableGradients(rows, ids, gradients))
    return found


def finite(collected: Sequence[TableGradients]) -> bool:
    """Whether all gradients are finite; if not, none of the step must be pushed anywhere."""
    return all(is_finite(each.gradients) for each in collected)


def prepare(
    collected: Sequence[TableGradients], *, sequence: int, lr_factor: float, grouped: bool, scale: float
) -> None:
    """Hand over all of a push, to every table, but the word that offers it."""
    for each in collected:
        assert isinstance(each.rows, TableLink)
        each.rows.prepare(
            each.ids, each.gradients, sequence=sequence, lr_factor=lr_factor, grouped=grouped, weight=scale
        )


def submit(collected: Sequence[TableGradients], sequence: int) -> None:
    """Offer what was prepared."""
    for each in collected:
        each.rows.submit(sequence)


def push(
    collected: Sequence[TableGradients],
    *,
    sequence: int,
    lr_factor: float = 1.0,
    grouped: bool = False,
    scale: float = 1.0,
) -> None:
    """Push to every table, as one step: prepared everywhere before it is offered anywhere."""
    prepare(collected, sequence=sequence, lr_factor=lr_factor, grouped=grouped, scale=scale)
    submit(collected, sequence)


def answers(
    collected: Sequence[TableGradients], sequence: int, *, deadline_seconds: float = DEADLINE_SECONDS
) -> list[Answer]:
    """Wait for what became of a push, on every table's every server."""
    return [
        answer
        for each in collected
        for answer in each.rows.answer(sequence, deadline_seconds=deadline_seconds)
    ]


def apply_local(collected: Sequence[TableGradients], *, lr_factor: float = 1.0, scale: float = 1.0) -> None:
    """Update tables of this process.

    Raises:
        Fault: a gradient is not finite; then no table is changed.
    """
    for each in collected:
        if not is_finite(each.gradients):
            raise Fault(
                f"table {each.rows.table.name!r}: a gradient is not finite", hint="lower the learning rate"
            )
    for each in collected:
        assert isinstance(each.rows, LocalTable)
        each.rows.apply(each.ids, each.gradients, lr_factor=lr_factor, weight=scale)
