"""A worker's way to one shard, whatever lies between."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """What goes with a push.

    Args:
        sequence: 1, 2, 3... of this worker, equal on all shards; a number is applied at most once.
        start, stop: elements of the shard it concerns; (0, num_elements) for all.
        lr: learning rate to apply with; used by pushes that are applied as they come.
        weight: factor on the gradient, for the same.
        grouped: hold it until the launcher names its group.
        vouched: the worker has seen that every number is finite; a server of its own host believes it.
        clock: the worker's.
        read_version: of the shard, as :meth:`Link.pull` returned it.
        codec: index into the run's list of codecs; -1: raw float32 in :attr:`Link.gradients`.
        payload: the encoded gradient, when ``codec`` >= 0.
    """

    sequence: int
    start: int
    stop: int
    lr: float
    weight: float = 1.0
    grouped: bool = False
    vouched: bool = False
    clock: int = 0
    read_version: int = 0
    codec: int = -1
    payload: memoryview | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What became of a push: ``verdict`` is applied, dropped or refused (see ``memory``)."""

    verdict: int
    version: int
    staleness: int


class Link(Protocol):
    """One worker's link to one shard. One thread uses it."""

    @property
    def num_elements(self) -> int:
        """Of the shard."""
        ...

    @property
    def parameters(self) -> NDArray[np.float32]:
        """What the worker computes from, (num_elements,); changes only in :meth:`pull`, unless it is a view of
        the shard itself."""
        ...

    @property
    def gradients(self) -> NDArray[np.float32]:
        """Where to write what is pushed raw, (num_elements,); free again once answered."""
        ...

    @property
    def bytes_sent(self) -> int:
        """Handed over so far, frame headers included where there are frames."""
        ...

    @property
    def bytes_received(self) -> int:
        """The same the other way."""
        ...

    def pull(self, *, deadline_seconds: float) -> NDArray[np.uint64]:
        """Bring ``parameters`` up to date; returns each chunk's version (updates applied to it).

        Never mixes the halves of one update within a chunk, unless ``parameters`` is a view.
        Raises Fault when the shard does not answer before ``deadline_seconds`` (from now).
        """
        ...

    def offer(self, offer: Offer) -> None:
        """Hand a push over; returns at once."""
        ...

    def prepare(self, offer: Offer) -> None:
        """Hand all of a push over but the word that offers it.

        A push to several shards is prepared on all of them first: then whoever finds it offered on one may
        offer it on the others, should this worker die in between.
        """
        ...

    def prepared(self, sequence: int, *, deadline_seconds: float) -> None:
        """Wait until the shard has all of what was prepared. Raises Fault after ``deadline_seconds``."""
        ...

    def submit(self, sequence: int) -> None:
        """Offer what was prepared."""
        ...

    def answer(self, sequence: int, *, deadline_seconds: float) -> Answer:
        """Wait for what became of the push. Raises Fault after ``deadline_seconds``."""
        ...

    def close(self) -> None:
        """Give the link up."""
        ...
