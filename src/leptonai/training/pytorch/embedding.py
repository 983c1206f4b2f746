"""An embedding whose rows live in a sparse table: on parameter servers, or in this process while there are none.

Letters: B examples, L ids of one example, U different ids of a batch, W numbers in a row.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from leptonai.core.errors import InputError
from leptonai.training.parameter_server.tables.local import LocalTable
from leptonai.training.parameter_server.tables.pushes import TablePushes, link_for
from leptonai.training.parameter_server.tables.service import is_finite
from leptonai.training.parameter_server.tables.spec import Table, as_ids

Mode = Literal["sum", "mean"]


class Rows(Protocol):
    """Where rows come from: a ``TableLink`` or a ``LocalTable``."""

    @property
    def table(self) -> Table: ...

    def pull(
        self, ids: object, *, create: bool = True, out: NDArray[np.float32] | None = None
    ) -> NDArray[np.float32]: ...


class ShardedEmbedding(nn.Module):
    """Rows of a table by id, for tables larger than a worker's memory.

    It has no parameters of its own: data parallelism, optimisers and ``state_dict`` do not see the table. The
    table's own rule updates its rows, with what :meth:`collect` gives after the backward pass.

    Args:
        table: which rows; modules that share a table's name must share its values.
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
        self._rows: Rows | None = None
        self._pulled: list[tuple[NDArray[np.int64], torch.Tensor]] = []

    def bind(self, rows: Rows) -> None:
        """Take rows from there from now on.

        Raises:
            InputError: that is another table.
        """
        if rows.table != self.table:
            raise InputError(f"ShardedEmbedding: {self.table.name!r} does not fit table {rows.table.name!r}")
        self._rows = rows

    @property
    def rows(self) -> Rows:
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
        ids_U, places = unique_ids(found.reshape(-1))
        learning = self.training and torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
        rows_UW = torch.from_numpy(self.rows.pull(ids_U, create=learning)).to(ids.device)
        if learning:
            rows_UW.requires_grad_()
            self._pulled.append((ids_U, rows_UW))
        at = torch.from_numpy(places).reshape(ids.shape).to(ids.device)
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


def unique_ids(ids: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each id once, rising, and the place of every id among them."""
    unique, places = np.unique(ids, return_inverse=True)
    return unique, places.reshape(-1).astype(np.int64, copy=False)


def tables_of(model: nn.Module) -> list[ShardedEmbedding]:
    """The model's sharded embeddings, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, ShardedEmbedding)]


def bind_tables(model: nn.Module, links: Mapping[str, Any]) -> TablePushes:
    """Bind every sharded embedding to its table's link.

    Args:
        links: a ``TableLink`` for each table's name.

    Returns:
        What pushes for all of them.

    Raises:
        InputError: a table has no link, or two modules disagree about it.
    """
    for module in tables_of(model):
        module.bind(link_for(module.table, links))
    return TablePushes(links, lambda: _gradients(model))


def apply_local(model: nn.Module, *, lr_factor: float = 1.0, scale: float = 1.0) -> None:
    """After a backward pass of a single process: update the rows of all tables that are not bound to servers.

    Raises:
        Fault: a gradient is not finite; then no table is changed.
    """
    collected = [(module, module.collect()) for module in tables_of(model)]
    for _, parts in collected:
        for _, gradients in parts:
            if not is_finite(gradients):
                discard(model)
                break
    for module, parts in collected:
        rows = module.rows
        assert isinstance(rows, LocalTable)
        if parts:
            ids, gradients = (np.concatenate(each) for each in zip(*parts, strict=True))
            rows.apply(ids, gradients, lr_factor=lr_factor, weight=scale)


def discard(model: nn.Module) -> None:
    """Forget what was pulled and not yet pushed, as after a step that failed."""
    for module in tables_of(model):
        module.collect()


def _gradients(model: nn.Module) -> list[tuple[str, NDArray[np.int64], NDArray[np.float32]]]:
    return [(module.table.name, *part) for module in tables_of(model) for part in module.collect()]
