"""Kills processes of a run one after the other and times, from each kill, how soon work goes on there."""

from __future__ import annotations

import os
import queue
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import psutil

from leptonai.core.events import (
    Event,
    ServerRestarted,
    ServerStarted,
    Staleness,
    StepDone,
    WorkerJoined,
    WorkerStarted,
)

PATIENCE_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Recovery:
    """One kill, in seconds from the signal.

    Args:
        serving: until the launcher heard that the replacement was ready (a server serves, a worker has joined).
        working: until the first work through the replacement was done: for a server the first training step that
            ended after it served again (a step needs every shard), for a worker its own first push that every
            shard had acknowledged and the launcher counted.
        warm: the replacement had been started before the kill.
    """

    serving: float
    working: float
    warm: bool


class Killer:
    """Hears a run's events and kills as it goes on; :meth:`start` it before the run.

    Args:
        role: ``server`` or ``worker``; indices 0 and 1 take turns.
        count: kills.
        gap_seconds: at least this long from a recovery to the next kill, and up to a quarter longer, so that kills
            fall anywhere in a step; half as long again after each replacement that was not warm.
        wants_warm: whether replacements that are not warm prolong the gap.
        done: called at the end, from the killer's own thread: it should end the run.
    """

    def __init__(
        self,
        *,
        role: str,
        count: int,
        gap_seconds: float,
        wants_warm: bool,
        seed: int,
        done: Callable[[], None],
    ) -> None:
        self._role, self._count, self._gap, self._wants_warm = role, count, gap_seconds, wants_warm
        self._dice, self._done = random.Random(seed), done
        self._heard: queue.SimpleQueue[tuple[float, Event]] = queue.SimpleQueue()
        self._pids: dict[tuple[str, int], int] = {}
        self._thread = threading.Thread(target=self._run, name="killer", daemon=True)
        self.recoveries: list[Recovery] = []
        self.problem = ""

    def start(self) -> None:
        """Begin to wait for the run's first step."""
        self._thread.start()

    def hear(self, event: Event) -> None:
        """Take an event of the run; called by its launcher."""
        self._heard.put((time.monotonic(), event))

    def _run(self) -> None:
        try:
            self._until(lambda event: isinstance(event, StepDone))
            for number in range(self._count):
                self._wait(self._gap * self._dice.uniform(1.0, 1.25))
                recovery = self._kill(number % 2)
                self.recoveries.append(recovery)
                if self._wants_warm and not recovery.warm:
                    self._gap *= 1.5
        except TimeoutError as error:
            self.problem = str(error)
        self._done()

    def _kill(self, index: int) -> Recovery:
        pid, wall = self._pids[self._role, index], time.time()
        began = time.monotonic()
        os.kill(pid, signal.SIGKILL)
        if self._role == "server":
            serving = self._until(lambda event: isinstance(event, ServerRestarted) and event.server == index)
            working = self._until(lambda event: isinstance(event, StepDone))
        else:
            serving = self._until(lambda event: isinstance(event, WorkerJoined) and event.rank == index)
            working = self._until(_Advance(str(index)))
        warm = psutil.Process(self._pids[self._role, index]).create_time() < wall
        return Recovery(serving=serving - began, working=working - began, warm=warm)

    def _until(self, wanted: Callable[[Event], bool]) -> float:
        """When the first such event came.

        Raises:
            TimeoutError: none did.
        """
        deadline = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < deadline:
            found = self._next(deadline - time.monotonic())
            if found is not None and wanted(found[1]):
                return found[0]
        raise TimeoutError(f"no recovery within {PATIENCE_SECONDS:.0f} s of kill {len(self.recoveries) + 1}")

    def _wait(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._next(deadline - time.monotonic())

    def _next(self, seconds: float) -> tuple[float, Event] | None:
        try:
            at, event = self._heard.get(timeout=max(0.0, seconds))
        except queue.Empty:
            return None
        match event:
            case WorkerStarted(rank=rank, pid=pid):
                self._pids["worker", rank] = pid
            case ServerStarted(server=server, pid=pid):
                self._pids["server", server] = pid
            case _:
                pass
        return at, event


@dataclass
class _Advance:
    """Whether a worker's clock has moved on from where it was first seen: one whole deal of it is done."""

    rank: str
    seen: int | None = field(default=None)

    def __call__(self, event: Event) -> bool:
        if not isinstance(event, Staleness) or self.rank not in event.clocks:
            return False
        if self.seen is None:
            self.seen = event.clocks[self.rank]
        return event.clocks[self.rank] > self.seen
