"""One worker's tables in a served run: what a backward pass left there, pushed beside the dense gradient.

A step goes: :meth:`~TableSession.clear`, forward and backward, :meth:`~TableSession.collect`, look whether all is
finite, :meth:`~TableSession.prepare` before the dense push is offered anywhere and :meth:`~TableSession.submit`
after it: so whoever finds a dead worker's push offered in one place may offer it in all.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from leptonai.training.parameter_server.memory import APPLIED
from leptonai.training.parameter_server.tables import gradients
from leptonai.training.parameter_server.tables.link import TableFault, TableLink


class TableSession:
    """Every table of one worker's model; without tables it does nothing.

    Args:
        embeddings: the model's.
        links: to each of their tables.

    Raises:
        InputError: a table has no link.
    """

    def __init__(self, embeddings: Sequence[gradients.Embedding], links: Sequence[TableLink]) -> None:
        self._embeddings, self._links = list(embeddings), list(links)
        gradients.bind(self._embeddings, {link.table.name: link for link in self._links})
        self._collected: list[gradients.TableGradients] = []

    @property
    def bytes_sent(self) -> int:
        """Ids and gradients pushed so far."""
        return sum(link.bytes_sent for link in self._links)

    @property
    def bytes_received(self) -> int:
        """Rows pulled so far."""
        return sum(link.bytes_received for link in self._links)

    def clear(self) -> None:
        """Forget what an earlier step left that was never pushed."""
        gradients.collect(self._embeddings)

    def collect(self) -> None:
        """Take over what the backward passes since :meth:`clear` left."""
        self._collected = gradients.collect(self._embeddings)

    def arrays(self) -> list[NDArray[np.float32]]:
        """The gradients, one flat array a table, each row once; what is changed in them is pushed."""
        self._collected = [_each_row_once(found) for found in self._collected]
        return [found.gradients.reshape(-1) for found in self._collected]

    def finite(self) -> bool:
        """Whether all of them are; if not, nothing of the step may be pushed anywhere."""
        return gradients.finite(self._collected)

    def prepare(self, sequence: int, *, lr_factor: float, grouped: bool) -> None:
        """Hand the push over to every table, rows or none, but for the word that offers it."""
        gradients.prepare(self._collected, sequence=sequence, lr_factor=lr_factor, grouped=grouped, scale=1.0)

    def submit(self, sequence: int) -> None:
        """Offer it."""
        gradients.submit(self._collected, sequence)

    def answer(self, sequence: int) -> None:
        """Wait until every table has applied it.

        Raises:
            TableFault: a server did not answer in time, or had no room for a row that had given way since it was read.
        """
        for found in self._collected:
            for answer in found.rows.answer(sequence):
                if answer.verdict != APPLIED:
                    raise TableFault(
                        f"table {found.rows.table.name!r} did not take push {sequence}",
                        hint="a larger capacity, or more memory: rows gave way between pull and push",
                    )


def _each_row_once(found: gradients.TableGradients) -> gradients.TableGradients:
    ids, places = np.unique(found.ids, return_inverse=True)
    if len(ids) == len(found.ids) and found.gradients.flags.c_contiguous and found.gradients.flags.writeable:
        return found
    summed = np.zeros((len(ids), found.rows.table.width), np.float32)
    np.add.at(summed, places, found.gradients)
    return gradients.TableGradients(found.rows, ids, summed)
