"""Pushes that are applied together: who is in the group, when it is complete, how much each counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from leptonai.training.parameter_server.consistency import (
    Backup,
    Bsp,
    Consistency,
    StreamingDiloco,
    is_local,
)
from leptonai.training.parameter_server.pieces import PieceQueue
from leptonai.training.parameter_server.work import Apply, Member, Piece

State = Literal["computing", "offered", "decided", "dropped"]


@dataclass(slots=True, eq=False)
class Worker:
    """A worker as the coordinator sees it.

    Args:
        number: its id.
        computing: the deal it is at and has not reported; None: it is free.
        num_deals: deals of it that are not forgotten: in its hands, or waiting to be applied.
        retiring: it is dealt nothing more.
    """

    number: int
    computing: Deal | None = None
    num_deals: int = 0
    retiring: bool = False


@dataclass(slots=True, eq=False)
class Deal:
    """One deal, until its pieces are done or dealt again and its worker has reported.

    ``state``: ``computing``: in the worker's hands; ``offered``: on the servers, waiting for its group;
    ``decided``: the servers are told to apply it, so nothing can take it back; ``dropped``: its pieces went
    back, but the worker does not know yet.
    """

    number: int
    worker: Worker
    pieces: tuple[Piece, ...]
    group: Group | None
    state: State = "computing"
    late: bool = False
    sequence: int = 0
    loss_sum: float = 0.0
    examples: int = 0

    @property
    def num_examples(self) -> int:
        """In all its pieces."""
        return sum(piece.stop - piece.start for piece in self.pieces)


@dataclass(slots=True, eq=False)
class Group:
    """One round of deals whose pushes are applied as one update.

    Args:
        number: rising over the run.
        spare: pushes it does without.
        pending: pieces set aside for workers that are not free yet.
        deals: by worker.
    """

    number: int
    spare: int
    pending: dict[int, tuple[Piece, ...]]
    deals: dict[int, Deal] = field(default_factory=dict)
    num_offered: int = 0
    decided: bool = False

    @property
    def is_void(self) -> bool:
        """Whether nobody is left in it."""
        return not self.deals and not self.pending

    @property
    def is_ready(self) -> bool:
        """Whether enough has been offered to apply; at least one push, however many are spare."""
        needed = max(1, len(self.deals) + len(self.pending) - self.spare)
        return not self.decided and self.num_offered >= needed

    def remove(self, deal: Deal) -> None:
        """The group goes on without this deal."""
        del self.deals[deal.worker.number]
        if deal.state == "offered":
            self.num_offered -= 1

    def offered_in_rank_order(self) -> list[Deal]:
        """What lies on the servers, by worker number."""
        return [deal for _, deal in sorted(self.deals.items()) if deal.state in ("offered", "decided")]


def pieces_per_deal(mode: Consistency) -> int:
    """Pieces a worker gets at once; each is one local step in the local family.

    Streaming DiLoCo synchronises one of its fragments after every ``steps // fragments`` local steps.
    """
    if isinstance(mode, StreamingDiloco):
        return mode.steps // mode.fragments
    return mode.steps if is_local(mode) else 1  # type: ignore[union-attr]


def set_aside(
    queue: PieceQueue, mode: Consistency, workers: list[int], size: int
) -> dict[int, tuple[Piece, ...]]:
    """Pieces of one round for each of ``workers``, in that order; those who get nothing are left out.

    Args:
        size: examples in a piece, about; ``bsp`` cuts a whole step into equal shares instead.
    """
    if isinstance(mode, Bsp):
        return {
            worker: (piece,) for worker, piece in zip(workers, queue.take_step(len(workers)), strict=False)
        }
    taken: dict[int, list[Piece]] = {}
    # Step by step over all workers, so that with nothing given back each local step is a cut of one global batch.
    for _ in range(pieces_per_deal(mode)):
        for worker in workers:
            piece = queue.take(size)
            if piece is None:
                return {number: tuple(pieces) for number, pieces in taken.items()}
            taken.setdefault(worker, []).append(piece)
    return {number: tuple(pieces) for number, pieces in taken.items()}


def spare_pushes(mode: Consistency) -> int:
    """How many pushes a round does without."""
    return mode.workers if isinstance(mode, Backup) else 0


def apply_decision(number: int, deals: list[Deal], mode: Consistency, queue: PieceQueue) -> Apply:
    """The order to apply these deals, in rank order, each with its weight.

    A gradient is a sum over its piece divided by the size of that piece's whole step; the weight turns the
    group's sum into the mean over the examples that are in it. Movements are averaged by examples.
    """
    arrived = max(1, sum(deal.num_examples for deal in deals))
    local = is_local(mode)
    fragments = mode.fragments if isinstance(mode, StreamingDiloco) else 1
    members = tuple(
        Member(
            worker=deal.worker.number,
            sequence=deal.sequence,
            weight=(deal.num_examples if local else queue.step_size(deal.pieces[0].step)) / arrived,
        )
        for deal in deals
    )
    return Apply(
        group=number, members=members, step=queue.steps_done, fragment=number % fragments, fragments=fragments
    )
