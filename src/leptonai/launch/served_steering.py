"""Following orders in a served run: more or fewer workers, another consistency, a save, a halt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import assert_never

from leptonai.core.clock import Clock
from leptonai.core.control import Halt, Order, Resize, Save, SwitchConsistency
from leptonai.core.errors import InputError
from leptonai.core.events import ConsistencyChanged, Event, Notice, Resized
from leptonai.launch.served_workers import Addresses, Workers
from leptonai.training.parameter_server.consistency import parse_consistency
from leptonai.training.parameter_server.coordinator import Coordinator
from leptonai.training.parameter_server.work import Decision


class Steering:
    """What becomes of each order.

    Args:
        most_workers: the run has shared memory for.
        addresses: where the servers listen now.
    """

    def __init__(
        self,
        coordinator: Coordinator,
        workers: Workers,
        *,
        most_workers: int,
        addresses: Callable[[], Addresses],
        clock: Clock,
        on_event: Callable[[Event], None],
    ) -> None:
        self._coordinator, self._workers = coordinator, workers
        self._most_workers, self._addresses = most_workers, addresses
        self._clock, self._on_event = clock, on_event

    def check(self, order: Order) -> None:
        """Whether the run could follow an order; any thread may ask.

        Raises:
            InputError: it could not.
        """
        if isinstance(order, Resize) and not 1 <= order.num_workers <= self._most_workers:
            raise InputError(
                f"expected 1 to {self._most_workers} workers, found {order.num_workers}",
                hint="the run has shared memory for that many",
            )
        if isinstance(order, SwitchConsistency):
            self._coordinator.check_switch(parse_consistency(order.mode))

    def follow(self, order: Order) -> Sequence[Decision]:
        """Follow an order; returns what is now to be done."""
        match order:
            case Halt():
                return self._coordinator.order_halt()
            case Save():
                return self._coordinator.order_save()
            case SwitchConsistency(mode=mode):
                return self._switch(mode)
            case Resize(num_workers=count):
                return self._resize(count)
            case _:
                assert_never(order)

    def _switch(self, mode: str) -> Sequence[Decision]:
        at, step = self._clock.now_seconds(), self._coordinator.progress.step
        try:
            decisions = self._coordinator.switch(parse_consistency(mode))
        except InputError as error:  # allowed when it was taken, but not any more
            self._on_event(Notice(at_seconds=at, message=f"the consistency stays: {error.message}"))
            return ()
        self._on_event(ConsistencyChanged(at_seconds=at, mode=mode, step=step, reason="ordered"))
        return decisions

    def _resize(self, count: int) -> Sequence[Decision]:
        ranks = self._workers.ranks
        decisions = [decision for rank in ranks[count:] for decision in self._coordinator.retire(rank)]
        free = [rank for rank in range(self._most_workers) if rank not in ranks]
        for rank in free[: max(0, count - len(ranks))]:
            self._workers.start(rank, initialize=False, addresses=self._addresses())
        at, step = self._clock.now_seconds(), self._coordinator.progress.step
        self._on_event(Resized(at_seconds=at, num_workers=count, step=step))
        return decisions
