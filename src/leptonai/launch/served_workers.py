"""The worker processes of a served run: who plays which rank, and who stands by."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from leptonai.compute.engines.base import WorkerSpec
from leptonai.compute.engines.progress import ProgressPage
from leptonai.core.clock import Clock
from leptonai.core.events import Event, WorkerStarted
from leptonai.launch.gang import SignallingEngine, is_stopped
from leptonai.training.parameter_server.work import Compute

Addresses = Sequence[Sequence[Any]]
"""(host, port) of each server; empty where workers reach them through shared memory."""

# A worker that is stopped may be continued soon, and in most modes holds up nobody but itself; after this long
# it is killed, and so replaced.
STOPPED_SECONDS = 5.0


@dataclass
class Worker:
    """One process: of ``rank``, or a spare (-1). ``lost_seconds``: when the one before it was lost."""

    spec: WorkerSpec
    rank: int
    pid: int = 0
    ready: bool = False
    retired: bool = False
    deal: Compute | None = None
    lr: float = 0.0
    lost_seconds: float | None = None
    stopped_seconds: float | None = None


class Workers:
    """All worker processes of one run.

    Args:
        make_spec: the spec for (name, rank or None for a spare, whether it writes the first parameters, where the
            servers listen).
        page: where workers note their progress.
    """

    def __init__(
        self,
        engine: SignallingEngine,
        make_spec: Callable[[str, int | None, bool, Addresses], WorkerSpec],
        page: ProgressPage,
        *,
        clock: Clock,
        on_event: Callable[[Event], None],
    ) -> None:
        self._engine, self._make_spec, self._page = engine, make_spec, page
        self._clock, self._on_event = clock, on_event
        self._by_name: dict[str, Worker] = {}
        self._by_rank: dict[int, Worker] = {}
        self._num_spares_made = 0

    @property
    def ranks(self) -> list[int]:
        """Ranks somebody plays."""
        return sorted(
            rank for rank, worker in self._by_rank.items()
            if not worker.retired and worker.spec.name in self._by_name
        )  # fmt: skip

    @property
    def count(self) -> int:
        """How many play a rank."""
        return len(self.ranks)

    @property
    def none_left(self) -> bool:
        """Whether all processes are gone."""
        return not self._by_name

    def by_name(self, name: str) -> Worker | None:
        """The process of that name, if it lives."""
        return self._by_name.get(name)

    def at(self, rank: int) -> Worker:
        """Who plays or last played the rank."""
        return self._by_rank[rank]

    def ready(self) -> list[Worker]:
        """Those who have a rank and are ready for work, in order of rank."""
        return [
            worker for _, worker in sorted(self._by_rank.items())
            if worker.ready and not worker.retired and worker.spec.name in self._by_name
        ]  # fmt: skip

    def step(self, rank: int) -> int:
        """How far a worker says it is."""
        return self._page.read()[rank].step

    def start(
        self, rank: int, *, initialize: bool, addresses: Addresses, lost_seconds: float | None = None
    ) -> None:
        """Start a fresh process for a rank."""
        name = f"rank-{rank}"
        worker = Worker(self._make_spec(name, rank, initialize, addresses), rank, lost_seconds=lost_seconds)
        self._by_name[name] = self._by_rank[rank] = worker
        self._engine.start(worker.spec)

    def runs(self, worker: Worker, pid: int) -> None:
        """A process has started."""
        worker.pid = pid
        if worker.rank >= 0:
            at = self._clock.now_seconds()
            self._on_event(WorkerStarted(at_seconds=at, rank=worker.rank, pid=pid))

    def forget(self, worker: Worker) -> None:
        """A process is gone."""
        del self._by_name[worker.spec.name]

    def replace(
        self,
        lost: Worker,
        now_seconds: float,
        *,
        initialize: bool,
        addresses: Addresses,
        faults: Mapping[str, Any] | None,
    ) -> None:
        """Have a spare that is ready play the lost one's rank, or else a fresh process."""
        spare = next((each for each in self._spares() if each.ready), None)
        if spare is None or initialize:
            self.start(lost.rank, initialize=initialize, addresses=addresses, lost_seconds=now_seconds)
            return
        spare.rank, spare.ready, spare.lost_seconds = lost.rank, False, now_seconds
        self._by_rank[lost.rank] = spare
        # What has struck since the spare began to stand by must not strike again in it.
        fresh = self._make_spec(spare.spec.name, lost.rank, False, addresses).assignment
        self._engine.send(spare.spec.name, {"take": {"rank": lost.rank, "faults": fresh["faults"]}})
        at = self._clock.now_seconds()
        self._on_event(WorkerStarted(at_seconds=at, rank=lost.rank, pid=spare.pid))

    def _spares(self) -> list[Worker]:
        return [worker for worker in self._by_name.values() if worker.rank < 0]

    def keep_spares(self, count: int, *, addresses: Addresses) -> None:
        """Have this many processes stand by, job and data loaded."""
        for _ in range(count - len(self._spares())):
            name = f"spare-{self._num_spares_made}"
            self._num_spares_made += 1
            self._by_name[name] = Worker(self._make_spec(name, None, False, addresses), -1)
            self._engine.start(self._by_name[name].spec)

    def dismiss_spares(self) -> None:
        """Send those who stand by home."""
        for spare in self._spares():
            self._engine.signal(spare.spec.name, signal.SIGKILL)

    def tell(self, rank: int, values: Mapping[str, Any]) -> None:
        """Say something to who plays the rank."""
        self._engine.send(self._by_rank[rank].spec.name, values)

    def end_stopped(self, held: Callable[[int], bool]) -> None:
        """Kill who has been stopped for too long, but for ranks that are ``held`` so on purpose."""
        now = self._clock.monotonic_seconds()
        for worker in self._by_name.values():
            if not worker.pid or held(worker.rank) or not is_stopped(worker.pid):
                worker.stopped_seconds = None
            elif worker.stopped_seconds is None:
                worker.stopped_seconds = now
            elif now - worker.stopped_seconds > STOPPED_SECONDS:
                self._engine.signal(worker.spec.name, signal.SIGKILL)
