"""A table within this process: the same rows and rules without a server, for a single worker and for evaluation."""

from __future__ import annotations

import weakref

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import Fault
from leptonai.training.parameter_server.tables.memory import TableMemory, TableShape
from leptonai.training.parameter_server.tables.service import is_finite
from leptonai.training.parameter_server.tables.spec import Table, as_ids
from leptonai.training.parameter_server.tables.storage import Push, TableStorage


class LocalTable:
    """A table's rows in this process's own memory.

    Args:
        table: which.

    Attributes:
        table: which.
        storage: its rows, for checkpoints.

    >>> from leptonai.training.parameter_server.tables.spec import RowSGD
    >>> rows = LocalTable(Table(name="t", width=2, num_rows=8, rule=RowSGD(lr=0.5), init_scale=0.0))
    >>> rows.apply([3], np.ones((1, 2), np.float32))
    >>> rows.pull([3, 4]).tolist()
    [[-0.5, -0.5], [0.0, 0.0]]
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self._memory = TableMemory.create(TableShape(table=table))
        self.storage = TableStorage(self._memory)
        self._close = weakref.finalize(self, self._memory.close)

    def pull(
        self, ids: object, *, create: bool = True, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]:
        """The rows ``ids`` (N,), float32 (N, width), as ``TableLink.pull`` does."""
        found = as_ids(self.table, ids)
        if out is None:
            out = np.empty((len(found), self.table.width), np.float32)
        self.storage.pull(found, out, create=create)
        return out

    def apply(
        self, ids: object, gradients: NDArray[np.float32], *, lr_factor: float = 1.0, weight: float = 1.0
    ) -> None:
        """One update of the rows ``ids``, of which some may be named more than once.

        Raises:
            InputError: an id is out of type or range.
            Fault: a gradient is not finite; nothing was applied.
        """
        found = as_ids(self.table, ids)
        if not is_finite(gradients):
            raise Fault(
                f"table {self.table.name!r}: a gradient is not finite", hint="lower the learning rate"
            )
        values = np.ascontiguousarray(gradients, np.float32)
        self.storage.apply([Push(found, values, weight)], lr_factor=lr_factor)

    def close(self) -> None:
        """Give the memory back once nothing looks at it any more."""
        self._close()
