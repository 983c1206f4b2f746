"""Deals pieces to workers under a consistency setting and settles what they report."""

from __future__ import annotations

from leptonai.training.parameter_server.clocks import Clocks
from leptonai.training.parameter_server.consistency import (
    Bsp,
    Consistency,
    Ssp,
    StreamingDiloco,
    consistency_text,
    is_grouped,
)
from leptonai.training.parameter_server.groups import (
    Deal,
    Group,
    Worker,
    apply_decision,
    pieces_per_deal,
    set_aside,
    spare_pushes,
)
from leptonai.training.parameter_server.pieces import PieceQueue
from leptonai.training.parameter_server.tally import Refusals, Tally
from leptonai.training.parameter_server.work import Compute, Decision, Dropped, Piece


class Dealer:
    """Who has which pieces. Each method appends what it decides to ``out``.

    How a round of grouped deals goes:

    - ``bsp``: a whole step, cut evenly over all workers; a lost or refused member voids the round, and the step
      is cut anew over those who are there.
    - ``backup``: one piece a worker; applied without the last ``spare``, whose pieces are dealt again.
    - ``local_sgd``, ``diloco``: ``steps`` pieces a worker; a lost member's pieces go back, the rest goes on.
    - ``streaming_diloco``: as ``diloco`` with ``steps // fragments`` pieces, and group ``g`` concerns fragment
      ``g % fragments``; a deal's clock is its group's number, from which a worker knows the fragment. A worker
      that offered to group ``g`` begins on ``g + 1`` at once, provided ``g - 1`` was applied: so one
      synchronisation is always under way beside the training.

    Args:
        queue: the data.
        mode: the consistency setting to begin with.
        last_deal, last_group: the highest numbers used so far.
    """

    def __init__(self, queue: PieceQueue, mode: Consistency, *, last_deal: int, last_group: int) -> None:
        self.queue = queue
        self.clocks = Clocks()
        self.workers: dict[int, Worker] = {}
        self.last_deal, self.last_group = last_deal, last_group
        self.tally = Tally()
        self._deals: dict[int, Deal] = {}
        self._groups: list[Group] = []
        self._dealt_to: list[Worker] = []
        self._refusals = Refusals()
        self.use(mode)

    def use(self, mode: Consistency) -> None:
        """Deal under this setting from now on; only while nothing is under way."""
        assert self.is_quiet
        self.mode = mode
        self._text = consistency_text(mode)
        self._grouped = is_grouped(mode)
        self._streaming = isinstance(mode, StreamingDiloco)
        self._bound = mode.staleness if isinstance(mode, Ssp) else None
        if self._bound is not None:
            self.clocks.level()

    @property
    def is_quiet(self) -> bool:
        """Whether no worker has a deal and no group waits."""
        return not self._deals and not self._groups

    @property
    def retired(self) -> list[int]:
        """Workers that are to go and have no deal any more."""
        if len(self._dealt_to) == len(self.workers):
            return []
        return [number for number, worker in self.workers.items() if worker.retiring and not worker.num_deals]

    def next_epoch(self) -> None:
        """Begin the next epoch."""
        self.queue.next_epoch()
        self._refusals = Refusals()

    # -- who is there -----------------------------------------------------------------------------

    def join(self, number: int) -> None:
        """A worker is there."""
        self.workers[number] = Worker(number)
        self.clocks.join(number)
        self._count()

    def remove(self, number: int) -> None:
        """A worker without deals goes."""
        del self.workers[number]
        self.clocks.leave(number)
        self._count()

    def retire(self, number: int) -> None:
        """Deal this worker nothing more."""
        self.workers[number].retiring = True
        for group in list(self._groups):
            self._give_back(group.pending.pop(number, ()))
            self._discard_if_void(group)
        self._count()

    def leave(self, number: int, out: list[Decision]) -> None:
        """A worker is gone; what it had and was not decided goes back."""
        gone = self.workers[number]
        self.retire(number)
        self.remove(number)
        for deal in [deal for deal in self._deals.values() if deal.worker is gone]:
            if deal.state == "dropped":
                self._forget(deal)
            elif deal.state != "decided" and deal.number in self._deals:
                self._lose(deal, out)
                self._forget(deal)

    def _count(self) -> None:
        self._dealt_to = [worker for _, worker in sorted(self.workers.items()) if not worker.retiring]

    # -- dealing ----------------------------------------------------------------------------------

    def deal(self, out: list[Decision]) -> None:
        """Deal to every free worker that may have something."""
        if not self._dealt_to:
            return
        if self._grouped:
            if self._may_open_group() and self._open_group():
                self.deal_pending(out)
            return
        size, count = self._piece_size(), pieces_per_deal(self.mode)
        for worker in self._dealt_to:
            if worker.computing is None and self.clocks.may_begin(worker.number, bound=self._bound):
                pieces = self._take(size, count)
                if not pieces:
                    return
                self._begin(worker, pieces, None, out)

    def deal_pending(self, out: list[Decision]) -> None:
        """Deal what groups have set aside to those who became free."""
        for group in self._groups:
            for number in list(group.pending):
                worker = self.workers[number]
                if worker.computing is None:
                    self._begin(worker, group.pending.pop(number), group, out)

    def _take(self, size: int, count: int) -> tuple[Piece, ...]:
        pieces = []
        for _ in range(count):
            piece = self.queue.take(size)
            if piece is None:
                break
            pieces.append(piece)
        return tuple(pieces)

    def _piece_size(self) -> int:
        return -(-self.queue.global_batch_size // len(self._dealt_to))

    def _may_open_group(self) -> bool:
        free = [worker.computing is None for worker in self._dealt_to]
        if self._streaming:
            return len(self._groups) < 2 and any(free)
        return not self._groups and (all(free) if isinstance(self.mode, Bsp) else any(free))

    def _open_group(self) -> bool:
        # Those who are still at a dropped deal come last: when pieces are few, the free ones get them.
        workers = sorted(self._dealt_to, key=lambda worker: (worker.computing is not None, worker.number))
        numbers = [worker.number for worker in (self._dealt_to if self._streaming else workers)]
        pending = set_aside(self.queue, self.mode, numbers, self._piece_size())
        if not pending:
            return False
        self.last_group += 1
        self._groups.append(Group(self.last_group, spare_pushes(self.mode), pending))
        return True

    def _begin(
        self, worker: Worker, pieces: tuple[Piece, ...], group: Group | None, out: list[Decision]
    ) -> None:
        self.last_deal += 1
        number = worker.number
        deal = Deal(self.last_deal, worker, pieces, group)
        self._deals[deal.number] = deal
        worker.computing = deal
        worker.num_deals += 1
        if group is not None:
            group.deals[number] = deal
            if self._streaming:
                self.clocks.set(number, group.number)
        out.append(
            Compute(
                worker=number, deal=deal.number, pieces=pieces, clock=self.clocks[number],
                grouped=self._grouped, mode=self._text,
            )
        )  # fmt: skip

    # -- reports ----------------------------------------------------------------------------------

    def offered(
        self, worker: int, number: int, sequence: int, loss_sum: float, examples: int, out: list[Decision]
    ) -> None:
        """A grouped push lies on the servers."""
        deal = self._find(worker, number)
        if deal is None or deal.group is None:
            return
        if deal.state == "dropped":
            out.append(Dropped(worker=worker, pieces=(), late=deal.late))
            self._forget(deal)
        elif deal.state == "computing":
            deal.state, deal.sequence = "offered", sequence
            deal.loss_sum, deal.examples = loss_sum, examples
            deal.worker.computing = None
            deal.group.num_offered += 1

    def applied(self, worker: int, number: int, staleness: int, loss_sum: float, examples: int) -> None:
        """An immediate push was applied on every shard."""
        deal = self._find(worker, number)
        if deal is None or deal.group is not None:
            return
        deal.loss_sum, deal.examples = loss_sum, examples
        self._settle(deal, staleness)

    def refused(self, worker: int, number: int, out: list[Decision]) -> None:
        """A push was not finite and is applied nowhere; its pieces are dealt once more.

        Raises:
            Fault: some of them were refused before in this epoch.
        """
        deal = self._find(worker, number)
        if deal is None or deal.state == "decided":
            return
        if deal.state != "dropped":
            self.tally.num_refused += 1
            self._lose(deal, out, refused=True)
            self._refusals.add(worker, deal.pieces)
        self._forget(deal)

    def group_applied(self, number: int) -> None:
        """Every shard has applied the group."""
        for group in self._groups:
            if group.number == number and group.decided:
                self._groups.remove(group)
                for deal in group.deals.values():
                    self._settle(deal, 0)
                return

    def decide(self, out: list[Decision]) -> None:
        """Have the oldest group applied when it is complete; groups are applied in order."""
        if self._groups and self._groups[0].is_ready:
            self._apply(self._groups[0], out)

    def _apply(self, group: Group, out: list[Decision]) -> None:
        group.decided = True
        for deal in [deal for _, deal in sorted(group.deals.items()) if deal.state == "computing"]:
            self._drop(deal, out, late=True)
            group.remove(deal)
        for pieces in group.pending.values():
            self._give_back(pieces)
        group.pending.clear()
        chosen = group.offered_in_rank_order()
        for deal in chosen:
            deal.state = "decided"
        out.append(apply_decision(group.number, chosen, self.mode, self.queue))

    # -- inside -----------------------------------------------------------------------------------

    def _find(self, worker: int, number: int) -> Deal | None:
        deal = self._deals.get(number)
        return deal if deal is not None and self.workers.get(worker) is deal.worker else None

    def _settle(self, deal: Deal, staleness: int) -> None:
        for piece in deal.pieces:
            self.queue.done(piece)
        self.tally.count(deal, staleness)
        number = deal.worker.number
        if self.workers.get(number) is deal.worker and not self._streaming:
            self.clocks.tick(number)
        self._forget(deal)

    def _lose(self, deal: Deal, out: list[Decision], *, refused: bool = False) -> None:
        """The deal will bring nothing; its group goes on without it, or is void. The caller forgets the deal."""
        group = deal.group
        if group is not None and isinstance(self.mode, Bsp):
            self._groups.remove(group)
            for other in [other for _, other in sorted(group.deals.items()) if other is not deal]:
                was_offered = other.state == "offered"
                self._drop(other, out, late=False)
                if was_offered:
                    self._forget(other)
        elif group is not None:
            group.remove(deal)
            self._discard_if_void(group)
        if refused:
            self._give_back(deal.pieces)
        else:
            self._drop(deal, out, late=False)

    def _drop(self, deal: Deal, out: list[Decision], *, late: bool) -> None:
        self._give_back(deal.pieces)
        deal.state, deal.late = "dropped", late
        self.tally.num_dropped += 1
        out.append(Dropped(worker=deal.worker.number, pieces=deal.pieces, late=late))

    def _give_back(self, pieces: tuple[Piece, ...]) -> None:
        for piece in pieces:
            self.queue.give_back(piece)

    def _discard_if_void(self, group: Group) -> None:
        if group.is_void:
            self._groups.remove(group)

    def _forget(self, deal: Deal) -> None:
        del self._deals[deal.number]
        deal.worker.num_deals -= 1
        if deal.worker.computing is deal:
            deal.worker.computing = None
