"""Running a served run to its end: deal work, group pushes, replace who dies, follow orders.

The :class:`~leptonai.training.parameter_server.coordinator.Coordinator` decides; this carries its decisions to
workers and servers, and what they report back to it.
"""

from __future__ import annotations

import queue
import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any, assert_never

from leptonai.compute.engines.base import Exited, Message, Report, Started
from leptonai.core.clock import Clock
from leptonai.core.control import Halt, Order, order_word
from leptonai.core.errors import Fault
from leptonai.core.events import (
    Event,
    OrderTaken,
    WorkerFailed,
    WorkerJoined,
    WorkerLost,
    event_from_json,
)
from leptonai.core.faults import Role
from leptonai.launch.gang import Failure, SignallingEngine, interrupts, tail, to_error
from leptonai.launch.run_faults import RunFaults
from leptonai.launch.served_books import PushBooks
from leptonai.launch.served_memory import ServedMemory
from leptonai.launch.served_record import Recorder
from leptonai.launch.served_report import ServedReport
from leptonai.launch.served_servers import Servers, how_it_ended
from leptonai.launch.served_steering import Steering
from leptonai.launch.served_tables import answered_everywhere, finish_everywhere
from leptonai.launch.served_workers import Worker, Workers
from leptonai.training.elastic import Elastic
from leptonai.training.parameter_server.coordinator import Coordinator
from leptonai.training.parameter_server.memory import Header, Slot
from leptonai.training.parameter_server.work import (
    Apply,
    Compute,
    Decision,
    Dropped,
    EpochEnded,
    EvaluateShare,
    Finish,
    SaveNow,
    compute_to_json,
)

POLL_SECONDS = 0.05
# An answer of the servers that is awaited without a message to tell of it.
SETTLE_SECONDS = 0.002


class ServedGang:
    """One served run on an engine.

    Args:
        elastic: which losses are borne; None: none of a worker.
    """

    def __init__(
        self,
        engine: SignallingEngine,
        servers: Callable[[Callable[[str], None]], Servers],
        workers: Workers,
        coordinator: Coordinator,
        memory: ServedMemory,
        report: ServedReport,
        faults: RunFaults,
        recorder: Recorder | None,
        *,
        num_workers: int,
        elastic: Elastic | None,
        over_tcp: bool,
        save_every_seconds: float,
        clock: Clock,
        on_event: Callable[[Event], None],
    ) -> None:
        self._engine, self._workers, self._coordinator = engine, workers, coordinator
        self._servers = servers(self._count_loss)
        self._memory, self._report, self._num_workers = memory, report, num_workers
        self._recorder, self._recording = recorder, False
        self._faults, self._over_tcp = faults, over_tcp
        faults.use(self._signal)
        self._books = PushBooks(memory)
        self._elastic, self._clock, self._on_event = elastic, clock, on_event
        self._steering = Steering(
            coordinator, workers, most_workers=len(memory.worker_bells),
            addresses=lambda: self._servers.listening, clock=clock, on_event=on_event,
        )  # fmt: skip
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._orphans: dict[int, Compute] = {}
        self._save_every_seconds, self._saved_seconds = save_every_seconds, clock.monotonic_seconds()
        self._initialized = False
        self._losses = -faults.expected_losses  # what was asked for is not counted
        self.interrupted = False

    # -- from outside -------------------------------------------------------------------------------

    def order(self, order: Order) -> str:
        """Take an order, from any thread; it is followed within a twentieth of a second.

        Raises:
            InputError: the run cannot follow it.
        """
        self._steering.check(order)
        self._orders.put(order)
        return "taken"

    def run(self) -> Mapping[str, Any]:
        """See the run through; returns how it ended.

        Raises:
            Fault, InputError, Refused: it failed; the caller closes the engine, which ends all processes.
            KeyboardInterrupt: on the second Ctrl-C; the first halts the run.
        """
        self._servers.start()
        if not self._over_tcp:
            self._start_workers()
        with interrupts() as pressed:
            while not (self._coordinator.finished and self._workers.none_left):
                self._turn()
                if len(pressed) > 1:
                    raise KeyboardInterrupt
                if pressed and not self.interrupted:
                    self.interrupted = True
                    self._do(self._steering.follow(Halt()))
        self._faults.close()
        if self._recorder is not None:
            self._recorder.end()
        self._servers.stop()
        return {
            "pushes_lost": self._books.lost(),
            "ending": self._coordinator.ending or "done",
            "step": self._coordinator.progress.step,
            "metrics": self._report.metrics,
            "saved_step": self._report.saved_step,
        }

    # -- turning ------------------------------------------------------------------------------------

    def _start_workers(self) -> None:
        for rank in range(self._num_workers):
            self._workers.start(rank, initialize=rank == 0, addresses=self._servers.listening)

    def _turn(self) -> None:
        for report in self._engine.poll(SETTLE_SECONDS if self._orphans else POLL_SECONDS):
            self._hear(report)
        while not self._orders.empty():
            order = self._orders.get()
            word = order_word(order)
            self._on_event(OrderTaken(at_seconds=self._clock.now_seconds(), order=word))
            self._do(self._steering.follow(order))
        for rank, deal in list(self._orphans.items()):
            self._settle(rank, deal)
        for injected in self._faults.poll(self._progress()):
            self._on_event(injected)
        self._workers.end_stopped(lambda rank: self._faults.holds("worker", rank))
        self._save_if_due()
        if self._coordinator.finished:
            self._workers.dismiss_spares()
        elif self._coordinator.progress.step > 0 and self._elastic is not None:
            count = self._elastic.spare if self._elastic.replace else 0
            self._workers.keep_spares(count, addresses=self._servers.listening)
        self._report.steps(self._coordinator)

    def _progress(self) -> dict[tuple[Role, int], int]:
        clocks: dict[tuple[Role, int], int] = {("worker", r): c for r, c in self._coordinator.clocks.items()}
        servers = enumerate(self._memory.shards)
        return clocks | {("server", number): int(shard.header[Header.VERSION]) for number, shard in servers}

    def _signal(self, role: Role, index: int, number: signal.Signals) -> None:
        name = self._servers.name(index) if role == "server" else self._workers.at(index).spec.name
        self._engine.signal(name, number)

    def _save_if_due(self) -> None:
        now = self._clock.monotonic_seconds()
        if self._save_every_seconds > 0 and now - self._saved_seconds >= self._save_every_seconds:
            self._saved_seconds = now
            self._do(self._coordinator.order_save())

    def _hear(self, report: Report) -> None:
        if isinstance(report, Message) and "fault" in report.values:
            self._on_event(self._faults.heard(report.values["fault"]))
            return
        if self._servers.owns(report.name):
            for group, lr in self._servers.hear(report):
                self._books.applied()
                if self._recorder is not None:
                    self._recorder.group_applied(group, lr)
                self._do(self._coordinator.group_applied(group.group))
            if isinstance(report, Message) and "serving" in report.values:
                if self._over_tcp and self._servers.all_serve and not self._workers.ranks:
                    self._start_workers()  # now that it is known where the servers listen
                self._admit()
            return
        worker = self._workers.by_name(report.name)
        if worker is None:
            return
        match report:
            case Started(pid=pid):
                self._workers.runs(worker, pid)
            case Message(values=values):
                self._hear_worker(worker, values)
            case Exited(code=code):
                self._gone(worker, code)

    def _hear_worker(self, worker: Worker, values: Mapping[str, Any]) -> None:
        match values:
            case {"event": event}:
                self._report.note_saved(event)
                self._on_event(event_from_json(event))
            case {"computed": told}:
                if self._recorder is not None and worker.deal is not None:
                    self._recorder.computed(worker.deal, told)
            case {"failed": failed}:
                self._fail(Failure(rank=worker.rank, **failed))
            case {"served": {"kind": "spare"}}:
                worker.ready = True
            case {"served": {"kind": "initialized"}}:
                self._initialized = True
                self._books.open()
                self._admit()
            case {"served": {"kind": "joined"}}:
                worker.ready = True
                self._admit()
            case {"served": {"kind": "evaluated", "sums": sums}}:
                self._do(self._coordinator.evaluated(worker.rank, sums))
            case {"served": {"kind": "saved"}}:
                self._do(self._coordinator.saved())
            case {"served": report}:
                self._hear_push(worker, report)
            case _:
                pass

    def _hear_push(self, worker: Worker, report: Mapping[str, Any]) -> None:
        deal = worker.deal
        if deal is None or deal.deal != report["deal"]:
            return
        self._report.pushed(worker.rank, deal, report)
        worker.lr = report["lr"]
        sums = {"loss_sum": report["loss"], "examples": report["examples"]}
        match report["kind"]:
            case "offered":
                self._do(self._coordinator.offered(worker.rank, deal.deal, deal.deal, **sums))
            case "applied":
                worker.deal = None
                self._push_applied(deal)
                staleness = report["staleness"]
                self._do(self._coordinator.applied(worker.rank, deal.deal, staleness=staleness, **sums))
            case "refused":
                worker.deal = None
                self._do(self._coordinator.refused(worker.rank, deal.deal))

    def _admit(self) -> None:
        """Workers that are ready join once every server serves and the first parameters are written."""
        if not self._initialized or not self._servers.all_serve:
            return
        if self._recorder is not None and not self._recording:
            self._recording = True
            self._recorder.begin(self._servers.kernels)
        for worker in self._workers.ready():
            if worker.rank in self._coordinator.workers or worker.rank in self._orphans:
                continue
            if self._recorder is not None:
                self._recorder.joined(worker.rank)
            if worker.lost_seconds is not None:
                seconds = self._clock.monotonic_seconds() - worker.lost_seconds
                worker.lost_seconds = None
                at, step = self._clock.now_seconds(), self._coordinator.progress.step
                self._on_event(WorkerJoined(at_seconds=at, rank=worker.rank, step=step, seconds=seconds))
            self._do(self._coordinator.join(worker.rank))

    # -- losses -------------------------------------------------------------------------------------

    def _gone(self, worker: Worker, code: int) -> None:
        self._workers.forget(worker)
        if worker.retired or worker.rank < 0 or self._coordinator.finished:
            return
        reason = f"worker {worker.rank} {how_it_ended(code)}"
        if code > 0 or self._elastic is None:
            log = worker.spec.log
            failure = Failure(
                rank=worker.rank, kind="error", message=reason if code < 0 else f"{reason} without a word",
                hint=f"see {log}", traceback=tail(log), step=self._workers.step(worker.rank),
                at_monotonic=self._clock.monotonic_seconds(),
            )  # fmt: skip
            self._fail(failure)
        at, step = self._clock.now_seconds(), self._coordinator.progress.step
        self._on_event(WorkerLost(at_seconds=at, rank=worker.rank, step=step, reason=reason, pid=worker.pid))
        deal = worker.deal
        held = self._memory.shards, self._memory.tables.all
        if deal is not None and not deal.grouped and finish_everywhere(*held, worker.rank, deal.deal):
            self._orphans[worker.rank] = deal  # the servers have it: it counts, once they have applied it
        else:
            self._do(self._coordinator.leave(worker.rank))
        self._count_loss(reason)
        assert self._elastic is not None
        if self._elastic.replace:
            now, addresses = self._clock.monotonic_seconds(), self._servers.listening
            self._workers.replace(
                worker, now, initialize=not self._initialized, addresses=addresses,
                faults=self._faults.assignment(),
            )  # fmt: skip
        elif self._workers.count < self._elastic.min_workers:
            raise Fault(
                f"{reason}; {self._workers.count} workers are left, at least {self._elastic.min_workers} are needed"
            )

    def _push_applied(self, deal: Compute) -> None:
        self._books.applied()
        if self._recorder is not None:
            self._recorder.applied(deal)

    def _settle(self, rank: int, deal: Compute) -> None:
        """Count a dead worker's push once every server has answered it."""
        if not answered_everywhere(self._memory.shards, self._memory.tables.all, rank, deal.deal):
            return
        slots = [memory.slots[rank] for memory in self._memory.shards]
        del self._orphans[rank]
        staleness = max(int(slot[Slot.STALENESS]) for slot in slots)
        examples = sum(piece.num_examples for piece in deal.pieces)
        self._push_applied(deal)
        loss = self._report.mean_loss * examples  # its own word of the loss died with it
        freed = self._coordinator.applied(
            rank, deal.deal, staleness=staleness, loss_sum=loss, examples=examples
        )
        # What it is dealt now goes back at once: whoever plays the rank next must not hear of it.
        self._do([decision for decision in freed if getattr(decision, "worker", None) != rank])
        self._do(self._coordinator.leave(rank))
        self._admit()

    def _count_loss(self, reason: str) -> None:
        self._losses += 1
        allowed = self._elastic.max_losses if self._elastic is not None else 0
        if self._losses > allowed:
            raise Fault(
                f"{reason}; that is loss number {self._losses} of this run, {allowed} are borne",
                hint="look for the cause, or allow more: Elastic(max_losses=...)",
            )

    def _fail(self, failure: Failure) -> None:
        self._on_event(
            WorkerFailed(
                at_seconds=self._clock.now_seconds(), rank=failure.rank, step=failure.step,
                reason=failure.message, traceback=failure.traceback, error_kind=failure.kind,
            )
        )  # fmt: skip
        raise to_error(failure)

    # -- decisions ----------------------------------------------------------------------------------

    def _do(self, decisions: Sequence[Decision]) -> None:
        for decision in decisions:
            match decision:
                case Compute(worker=rank):
                    self._workers.at(rank).deal = decision
                    self._workers.tell(rank, {"compute": compute_to_json(decision)})
                case Apply():
                    lr = max(self._workers.at(member.worker).lr for member in decision.members)
                    self._report.grouped(decision, lr)
                    self._servers.apply(decision, lr)
                case EvaluateShare(worker=rank, index=index, count=count, step=step):
                    self._workers.tell(rank, {"evaluate": {"index": index, "count": count, "step": step}})
                case SaveNow(worker=rank, step=step, extra=extra):
                    self._report.evaluated(self._coordinator)
                    self._workers.tell(
                        rank, {"save": {"step": step, "extra": {**extra, **self._report.extra()}}}
                    )
                case EpochEnded(epoch=epoch, step=step):
                    self._report.epoch(epoch, step, self._coordinator)
                case Finish(worker=rank):
                    self._workers.at(rank).retired = True
                    self._workers.tell(rank, {"finish": {}})
                case Dropped():
                    pass
                case _:
                    assert_never(decision)
        self._report.evaluated(self._coordinator)
