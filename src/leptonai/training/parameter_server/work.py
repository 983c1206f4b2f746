"""What the coordinator deals out and what it decides, as values.

A run's data is a sequence of global batches (one a step), each cut into *pieces*. A piece is dealt to one
worker at a time, and is done when the push that carries it was applied on every shard. What is dealt but not
done when a worker dies, or is dropped as too late, goes back and is dealt again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leptonai.core.values import value_from_json, value_to_json


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Piece:
    """Examples ``start`` to ``stop`` (exclusive) of the global batch of 0-based ``step``."""

    step: int
    start: int
    stop: int

    @property
    def num_examples(self) -> int:
        """How many."""
        return self.stop - self.start


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """Worker ``worker`` computes these pieces and pushes once.

    Args:
        deal: number of this deal, rising; the worker's report names it.
        pieces: one in the gradient family; in the local family one a local step, in order.
        clock: the worker's own count of deals before this one.
        grouped: whether the push waits for the launcher's :class:`Apply`.
        mode: the consistency setting this deal is made under, as text.
    """

    worker: int
    deal: int
    pieces: tuple[Piece, ...]
    clock: int
    grouped: bool
    mode: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """One push of a group: of ``worker``, by its ``sequence`` number, counted ``weight`` times."""

    worker: int
    sequence: int
    weight: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Apply:
    """Every shard applies these pushes as one update, summing in the order given (that of rank).

    ``step`` is the 0-based step whose learning rate counts. ``fragment`` of ``fragments``: only that part of
    the weights is concerned.
    """

    group: int
    members: tuple[Member, ...]
    step: int
    fragment: int = 0
    fragments: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Dropped:
    """A push came too late or its worker is gone: its pieces are dealt again."""

    worker: int
    pieces: tuple[Piece, ...]
    late: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateShare:
    """Worker ``worker`` evaluates share ``index`` of ``count`` of the evaluation set."""

    worker: int
    index: int
    count: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochEnded:
    """Every piece of 0-based ``epoch`` is done; ``step`` steps are."""

    epoch: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SaveNow:
    """Nothing is under way: ``worker`` writes a checkpoint of ``step`` steps with ``extra`` in it."""

    worker: int
    step: int
    extra: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finish:
    """Worker ``worker`` has nothing more to do."""

    worker: int


Decision = Compute | Apply | Dropped | EvaluateShare | EpochEnded | SaveNow | Finish


def piece_to_json(piece: Piece) -> list[int]:
    """As three numbers.

    >>> piece_to_json(Piece(step=1, start=0, stop=8))
    [1, 0, 8]
    """
    return [piece.step, piece.start, piece.stop]


def compute_to_json(deal: Compute) -> dict[str, Any]:
    """The deal as JSON-ready values."""
    values: dict[str, Any] = value_to_json(deal)
    return {**values, "pieces": [piece_to_json(piece) for piece in deal.pieces]}


def compute_from_json(values: Mapping[str, Any]) -> Compute:
    """Inverse of :func:`compute_to_json`."""
    pieces = [{"step": a, "start": b, "stop": c} for a, b, c in values["pieces"]]
    return value_from_json(Compute, {**values, "pieces": pieces})
