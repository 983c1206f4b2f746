"""An embedding whose rows live in a sparse table: on parameter servers, or in this process while there are none.

Letters: B examples, L ids of one example, U different ids of a batch, W numbers in a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from leptonai.core.errors import InputError
from leptonai.training.parameter_server.tables import gradients
from leptonai.training.parameter_server.tables.local import LocalTable
from leptonai.training.parameter_server.tables.spec import Table, as_ids

Mode = Literal["sum", "mean"]


class ShardedEmbedding(nn.Module):
    """Rows of a table by id, for tables larger than a worker's memory.

    It has no parameters of its own: data parallelism, optimisers and ``state_dict`` do not see the table. The
    table's own rule updates its rows, with what :meth:`collect` gives after the backward pass.

    Args:
        table: which rows. For one table at two places of a model use one module twice, or bind both.
        mode: ``"sum"`` or ``"mean"`` over the L ids of an example; None: a row for each id.

    >>> from leptonai.training.parameter_server.tables.spec import RowSGD
    >>> embedding = ShardedEmbedding(Table(name="t", width=4, num_rows=100, rule=RowSGD(lr=0.1)), mode="mean")
    >>> embedding(torch.tensor([[1, 2], [2, 3]])).shape
    torch.Size([2, 4])
    """

    def __init__(self, table: Table, mode: Mode | None = None) -> None:
        super().__init__()
        if mode not in (None, "sum", "mean"):
            raise InputError(f"ShardedEmbedding: unknown mode {mode!r}", hint='"sum", "mean" or None')
        self.table, self.mode = table, mode
        self._rows: gradients.Rows | None = None
        self._pulled: list[tuple[NDArray[np.int64], torch.Tensor]] = []

    def bind(self, rows: gradients.Rows) -> None:
        """Take rows from there from now on.

        Raises:
            InputError: that is another table.
        """
        gradients.check_same(self.table, rows)
        self._rows = rows

    @property
    def rows(self) -> gradients.Rows:
        """Where rows come from; a table in this process if nothing was bound."""
        if self._rows is None:
            self._rows = LocalTable(self.table)
        return self._rows

    def extra_repr(self) -> str:
        size = self.table.num_rows or self.table.capacity
        return f"{self.table.name!r}, {size} x {self.table.width}, mode={self.mode!r}"

    @torch.compiler.disable  # type: ignore[untyped-decorator,unused-ignore]
    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Rows (B, W) of ids (B,); of ids (B, L) their sum or mean (B, W), or without a mode (B, L, W).

        Raises:
            InputError: an id is out of type or range.
        """
        if ids.ndim not in (1, 2):
            raise InputError(
                f"ShardedEmbedding {self.table.name!r}: expected ids (B,) or (B, L), found {ids.ndim} dims"
            )
        found = as_ids(self.table, ids.detach().cpu().numpy())
        ids_U, places = np.unique(found, return_inverse=True)
        learning = self.training and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        rows_UW = torch.from_numpy(self.rows.pull(ids_U, create=learning)).to(ids.device)
        if learning:
            rows_UW.requires_grad_()
            self._pulled.append((ids_U, rows_UW))
        at = torch.from_numpy(places.astype(np.int64, copy=False)).reshape(ids.shape).to(ids.device)
        if self.mode is None or ids.ndim == 1:
            return functional.embedding(at, rows_UW)
        return functional.embedding_bag(at, rows_UW, mode=self.mode)

    def collect(self) -> list[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """(ids, gradients) of each forward pass since the last call that a backward pass has reached."""
        pulled, self._pulled = self._pulled, []
        return [
            (ids, rows.grad.detach().cpu().numpy().astype(np.float32, copy=False))
            for ids, rows in pulled
            if rows.grad is not None
        ]


def tables_of(model: nn.Module) -> list[ShardedEmbedding]:
    """The model's sharded embeddings, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, ShardedEmbedding)]


def bind_tables(model: nn.Module, rows: Mapping[str, gradients.Rows]) -> None:
    """Bind every sharded embedding to what is named as its table: a ``TableLink``, or a ``LocalTable``.

    Raises:
        InputError: a table has no rows, or its values are others.
    """
    gradients.bind(tables_of(model), rows)


def push_tables(
    model: nn.Module, *, sequence: int, lr_factor: float = 1.0, grouped: bool = False, scale: float = 1.0
) -> list[gradients.TableGradients]:
    """After the backward pass: push to every table, as one step; see ``tables.gradients`` for its parts.

    Args:
        scale: factor on the gradients.

    Returns:
        What was pushed, by which its answers are awaited: ``gradients.answers(pushed, sequence)``.
    """
    collected = gradients.collect(tables_of(model))
    gradients.push(collected, sequence=sequence, lr_factor=lr_factor, grouped=grouped, scale=scale)
    return collected


def apply_local(model: nn.Module, *, lr_factor: float = 1.0, scale: float = 1.0) -> None:
    """After the backward pass of a single process: update the rows of its own tables.

    Raises:
        Fault: a gradient is not finite; then no table is changed.
    """
    gradients.apply_local(gradients.collect(tables_of(model)), lr_factor=lr_factor, scale=scale)
