"""Goodput under failures, in virtual time: a run that restarts from its checkpoint against one that does not.

A run of ``num_workers`` workers and ``num_servers`` servers loses a process at random (exponential, every process
alike). *Goodput* is the share of its calm speed at which a run gets on.

- *Restart*: a loss ends the synchronous run. It goes on from its last checkpoint after ``restart_seconds``, which
  may be interrupted too; a checkpoint takes ``checkpoint_seconds``, and comes after the best interval there is.
  The expected time of one interval is Daly's (2006): ``M exp(R/M) (exp((t+C)/M) - 1)``.
- *Elastic*: the project's own :class:`Coordinator` deals the data. What a lost worker had in hand is dealt again;
  its place is taken after a measured recovery with a spare, if one is ready, else without. A lost server holds up
  every push until it is back.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from leptonai.training.parameter_server.consistency import Consistency
from leptonai.training.parameter_server.coordinator import Coordinator
from leptonai.training.parameter_server.work import Apply, Compute, Decision

EXAMPLES_PER_PIECE = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What was measured on real runs, in seconds; of lists one is drawn for each loss.

    Args:
        checkpoint: writing one.
        restart: from the command that resumes a run to the end of its first step.
        server: from a server's kill to the first step after it.
        worker_warm, worker_cold: from a worker's kill to its replacement's first push, with a spare and without.
    """

    checkpoint: float
    restart: float
    server: Sequence[float]
    worker_warm: Sequence[float]
    worker_cold: Sequence[float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fleet:
    """The run that is imagined.

    Args:
        spares: standing by; one that is used is ready again after a cold start.
        step_seconds: a worker's time for one piece; drawn from a tenth below to a tenth above.
    """

    num_workers: int = 64
    num_servers: int = 4
    spares: int = 2
    step_seconds: float = 0.1


# -- restart from a checkpoint ------------------------------------------------------------------------


def restart_goodput(interval: float, *, between: float, checkpoint: float, restart: float) -> float:
    """Expected goodput when checkpoints come ``interval`` seconds apart and losses ``between`` on average.

    >>> round(restart_goodput(10.0, between=1e9, checkpoint=0.0, restart=5.0), 6)
    1.0
    """
    exponent = (interval + checkpoint) / between
    if exponent + restart / between > 500.0:
        return 0.0
    return interval / (between * math.exp(restart / between) * math.expm1(exponent))


def best_restart_goodput(between: float, measured: Measured) -> tuple[float, float]:
    """(Goodput, interval): Young's ``sqrt(2 C M)``, or whatever is better still."""
    young = math.sqrt(2.0 * measured.checkpoint * between)
    intervals = [young * 1.02**power for power in range(-150, 151)]
    return max(
        (
            restart_goodput(each, between=between, checkpoint=measured.checkpoint, restart=measured.restart),
            each,
        )
        for each in intervals
    )


def seconds_between_losses(goodput: float, measured: Measured) -> float:
    """The mean time between losses at which restarting keeps no more than ``goodput``."""
    low, high = 1e-6 * measured.restart, 1e6 * measured.restart
    for _ in range(200):
        middle = math.sqrt(low * high)
        if best_restart_goodput(middle, measured)[0] < goodput:
            low = middle
        else:
            high = middle
    return high


def simulate_restart(
    interval: float, *, between: float, checkpoint: float, restart: float, losses: int, seed: int
) -> float:
    """The same by playing it: goodput over that many losses."""
    dice = random.Random(seed)
    useful = now = 0.0
    for _ in range(losses):
        alive = dice.expovariate(1.0 / between)
        now += alive
        working = max(0.0, alive - restart)  # every life begins with a restart
        useful += interval * (working // (interval + checkpoint))
    return useful / now


# -- the elastic run ----------------------------------------------------------------------------------


def elastic_goodput(
    mode: Consistency, *, fleet: Fleet, measured: Measured, between: float, seconds: float, seed: int
) -> float:
    """Examples applied in ``seconds`` of virtual time with losses, over those without any."""
    calm = _Simulation(mode, fleet, measured, between=math.inf, seed=seed).run(seconds)
    return _Simulation(mode, fleet, measured, between=between, seed=seed).run(seconds) / calm


@dataclass(slots=True)
class _Place:
    """A rank: which life of it is on, and whether somebody plays it."""

    life: int = 0
    there: bool = True


@dataclass(slots=True)
class _Queue:
    """What is to happen, by virtual time; among equals in the order it was put in."""

    entries: list[tuple[float, int, Callable[[], None]]] = field(default_factory=list)
    count: itertools.count[int] = field(default_factory=itertools.count)

    def put(self, at: float, action: Callable[[], None]) -> None:
        heapq.heappush(self.entries, (at, next(self.count), action))


class _Simulation:
    """One run in virtual time."""

    def __init__(
        self, mode: Consistency, fleet: Fleet, measured: Measured, *, between: float, seed: int
    ) -> None:
        self._fleet, self._measured, self._between = fleet, measured, between
        self._work, self._fate = random.Random(seed), random.Random(seed + 1)
        batch = EXAMPLES_PER_PIECE * fleet.num_workers
        self._coordinator = Coordinator(
            num_examples=1000 * batch, global_batch_size=batch, total_steps=1_000_000_000, mode=mode,
            num_workers=fleet.num_workers,
        )  # fmt: skip
        self._places = [_Place() for _ in range(fleet.num_workers)]
        self._spares_ready = [0.0] * fleet.spares
        self._servers_up = 0.0
        self._queue = _Queue()
        self._now = 0.0

    def run(self, seconds: float) -> int:
        """Examples applied by then."""
        for worker in range(self._fleet.num_workers):
            self._do(self._coordinator.join(worker))
        if math.isfinite(self._between):
            self._next_loss()
        while self._queue.entries and self._queue.entries[0][0] <= seconds:
            self._now, _, action = heapq.heappop(self._queue.entries)
            action()
        return self._coordinator.progress.examples

    def _do(self, decisions: Sequence[Decision]) -> None:
        for decision in decisions:
            if isinstance(decision, Compute):
                self._compute(decision)
            elif isinstance(decision, Apply):
                self._when_servers_are_up(lambda group=decision.group: self._group(group))  # type: ignore[misc]

    def _compute(self, deal: Compute) -> None:
        place = self._places[deal.worker]
        life = place.life
        # A piece's time goes by its size: after a loss the others' shares of a step are a little larger.
        examples = sum(piece.num_examples for piece in deal.pieces)
        seconds = self._fleet.step_seconds * self._work.uniform(0.9, 1.1) * examples / EXAMPLES_PER_PIECE

        def pushed() -> None:
            if place.life == life:
                self._when_servers_are_up(lambda: self._pushed(deal, life))

        self._queue.put(self._now + seconds, pushed)

    def _pushed(self, deal: Compute, life: int) -> None:
        if self._places[deal.worker].life != life:
            return
        if deal.grouped:
            self._do(self._coordinator.offered(deal.worker, deal.deal, deal.deal))
        else:
            self._do(self._coordinator.applied(deal.worker, deal.deal, staleness=0))

    def _group(self, group: int) -> None:
        self._do(self._coordinator.group_applied(group))

    def _when_servers_are_up(self, action: Callable[[], None]) -> None:
        if self._servers_up <= self._now:
            action()
        else:
            self._queue.put(self._servers_up, lambda: self._when_servers_are_up(action))

    # -- losses -----------------------------------------------------------------------------------

    def _next_loss(self) -> None:
        self._queue.put(self._now + self._fate.expovariate(1.0 / self._between), self._lose)

    def _lose(self) -> None:
        self._next_loss()
        struck = self._fate.randrange(self._fleet.num_workers + self._fleet.num_servers)
        if struck >= self._fleet.num_workers:
            self._servers_up = max(self._servers_up, self._now + self._fate.choice(self._measured.server))
            return
        place = self._places[struck]
        place.life += 1  # one that is still on its way back is lost again
        if place.there:
            place.there = False
            self._do(self._coordinator.leave(struck))
        life = place.life
        self._queue.put(self._now + self._recovery(), lambda: self._back(struck, life))

    def _recovery(self) -> float:
        cold = self._fate.choice(self._measured.worker_cold)
        for number, ready in enumerate(self._spares_ready):
            if ready <= self._now:
                self._spares_ready[number] = self._now + cold
                return self._fate.choice(self._measured.worker_warm)
        return cold

    def _back(self, worker: int, life: int) -> None:
        place = self._places[worker]
        if place.life == life:
            place.there = True
            self._do(self._coordinator.join(worker))
