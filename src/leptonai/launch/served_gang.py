"""Running servers and workers of a served run to its end: deal, group, replace who dies."""

from __future__ import annotations

import queue
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, assert_never

from leptonai.compute.engines.base import Exited, Message, Report, Started, WorkerSpec
from leptonai.compute.engines.progress import ProgressPage
from leptonai.compute.engines.supervise import Limits
from leptonai.core.clock import Clock
from leptonai.core.control import Halt, Order, Resize, Save, SwitchConsistency
from leptonai.core.errors import Fault, InputError
from leptonai.core.events import (
    ConsistencyChanged,
    Event,
    Notice,
    OrderTaken,
    Resized,
    ServerRestarted,
    WorkerFailed,
    WorkerJoined,
    WorkerLost,
    WorkerStarted,
    event_from_json,
)
from leptonai.launch.gang import Failure, tail, to_error
from leptonai.launch.gang import SignallingEngine, interrupts, is_stopped
from leptonai.launch.served_memory import ServedMemory
from leptonai.launch.served_report import ServedReport
from leptonai.training.parameter_server.consistency import parse_consistency
from leptonai.training.parameter_server.coordinator import Coordinator
from leptonai.training.parameter_server.layout import fragment_range
from leptonai.training.parameter_server.local_link import finish_offers
from leptonai.training.parameter_server.memory import Slot
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
# A worker that is stopped may be continued soon, and holds nobody up but itself; after this long it is replaced.
STOPPED_SECONDS = 5.0


@dataclass
class _Worker:
    spec: WorkerSpec
    joined: bool = False
    deal: Compute | None = None
    lr: float = 0.0
    lost_seconds: float | None = None
    stopped_seconds: float | None = None
    retired: bool = False


@dataclass
class _Group:
    values: dict[str, Any]
    waiting: set[int]
    ranges: list[tuple[int, int]] = field(default_factory=list)


class ServedGang:
    """One served run on an engine.

    Args:
        server_specs: one a shard, in order.
        worker_spec: makes the spec of the worker of a rank; ``initialize``: whether it writes the first parameters.
        max_losses: workers and servers that may be lost before the run is given up.
    """

    def __init__(
        self,
        engine: SignallingEngine,
        server_specs: Sequence[WorkerSpec],
        worker_spec: Callable[[int, bool], WorkerSpec],
        coordinator: Coordinator,
        memory: ServedMemory,
        page: ProgressPage,
        report: ServedReport,
        *,
        num_workers: int,
        min_workers: int,
        max_losses: int,
        replace: bool,
        limits: Limits,
        clock: Clock,
        on_event: Callable[[Event], None],
    ) -> None:
        self._engine, self._server_specs, self._worker_spec = engine, list(server_specs), worker_spec
        self._coordinator, self._memory, self._page, self._report = coordinator, memory, page, report
        self._num_workers, self._min_workers, self._max_losses = num_workers, min_workers, max_losses
        self._replace, self._limits, self._clock, self._on_event = replace, limits, clock, on_event
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._servers = {spec.name: number for number, spec in enumerate(server_specs)}
        self._serving: set[int] = set()
        self._server_lost: dict[int, float] = {}
        self._workers: dict[int, _Worker] = {}
        self._names: dict[str, int] = {}
        self._pids: dict[int, int] = {}
        self._groups: dict[int, _Group] = {}
        self._orphans: dict[int, Compute] = {}
        self._initialized = False
        self._losses = 0
        self._stopping = False
        self.interrupted = False

    # -- from outside -------------------------------------------------------------------------------

    def order(self, order: Order) -> str:
        """Take an order, from any thread; it is followed within a twentieth of a second.

        Raises:
            InputError: the run cannot follow it.
        """
        if isinstance(order, Resize) and not 1 <= order.num_workers <= len(self._memory.worker_bells):
            raise InputError(
                f"expected 1 to {len(self._memory.worker_bells)} workers, found {order.num_workers}",
                hint="the run has shared memory for that many",
            )
        if isinstance(order, SwitchConsistency):
            parse_consistency(order.mode)
        self._orders.put(order)
        return "taken"

    def run(self) -> Mapping[str, Any]:
        """See the run through; returns how it ended.

        Raises:
            Fault, InputError, Refused: it failed; the caller closes the engine, which ends all processes.
            KeyboardInterrupt: on the second Ctrl-C; the first halts the run.
        """
        for spec in self._server_specs:
            self._engine.start(spec)
        for rank in range(self._num_workers):
            self._start_worker(rank)
        with interrupts() as pressed:
            while not self._finished():
                self._turn()
                if len(pressed) > 1:
                    raise KeyboardInterrupt
                if pressed and not self.interrupted:
                    self.interrupted = True
                    self._follow(Halt())
        self._stop_servers()
        return {
            "ending": self._coordinator.ending or "done",
            "step": self._coordinator.progress.step,
            "metrics": self._report.metrics,
            "saved_step": self._report.saved_step,
        }

    def _finished(self) -> bool:
        return self._coordinator.finished and not self._names

    def _stop_servers(self) -> None:
        self._stopping = True
        for name in list(self._servers):
            self._engine.send(name, {"stop": {}})
        while self._servers:
            for report in self._engine.poll(POLL_SECONDS):
                if isinstance(report, Exited):
                    self._servers.pop(report.name, None)

    # -- turning ------------------------------------------------------------------------------------

    def _turn(self) -> None:
        for report in self._engine.poll(POLL_SECONDS if not self._orphans else 0.002):
            self._hear(report)
        while not self._orders.empty():
            order = self._orders.get()
            self._on_event(
                OrderTaken(at_seconds=self._clock.now_seconds(), order=type(order).__name__.lower())
            )
            self._follow(order)
        self._settle_orphans()
        self._end_stopped()
        self._report.steps(self._coordinator)

    def _hear(self, report: Report) -> None:
        server, rank = self._servers.get(report.name), self._names.get(report.name)
        match report:
            case Started(pid=pid) if rank is not None:
                self._pids[rank] = pid
                self._on_event(WorkerStarted(at_seconds=self._clock.now_seconds(), rank=rank, pid=pid))
            case Message(values=values) if server is not None:
                self._hear_server(server, values)
            case Message(values=values) if rank is not None:
                self._hear_worker(rank, values)
            case Exited(code=code) if server is not None:
                self._lose_server(server, code)
            case Exited(code=code) if rank is not None:
                self._worker_gone(rank, code)
            case _:
                pass

    # -- servers ------------------------------------------------------------------------------------

    def _hear_server(self, server: int, values: Mapping[str, Any]) -> None:
        match values:
            case {"serving": {"version": version}}:
                self._serving.add(server)
                if server in self._server_lost:
                    seconds = self._clock.monotonic_seconds() - self._server_lost.pop(server)
                    self._on_event(
                        ServerRestarted(
                            at_seconds=self._clock.now_seconds(),
                            server=server,
                            seconds=seconds,
                            version=version,
                        )
                    )
                for group in self._groups.values():
                    if server in group.waiting:
                        self._send_group(group, server)
                self._admit()
            case {"group_applied": {"group": number}}:
                group = self._groups.get(number)
                if group is None:
                    return
                group.waiting.discard(server)
                if not group.waiting:
                    del self._groups[number]
                    self._do(self._coordinator.group_applied(number))
            case {"failed": failed}:
                raise to_error(Failure(rank=server, **failed))
            case _:
                pass

    def _lose_server(self, server: int, code: int) -> None:
        if self._stopping:
            return
        self._count_loss(f"parameter server {server} {how_it_ended(code)}")
        self._serving.discard(server)
        self._server_lost[server] = self._clock.monotonic_seconds()
        self._engine.start(self._server_specs[server])

    def _send_group(self, group: _Group, server: int) -> None:
        self._engine.send(
            self._server_specs[server].name, {"apply": {**group.values, "range": group.ranges[server]}}
        )

    # -- workers ------------------------------------------------------------------------------------

    def _start_worker(self, rank: int) -> None:
        spec = self._worker_spec(rank, not self._initialized and rank == 0)
        old = self._workers.get(rank)
        self._workers[rank] = _Worker(spec=spec, lost_seconds=old.lost_seconds if old else None)
        self._names[spec.name] = rank
        self._engine.start(spec)

    def _hear_worker(self, rank: int, values: Mapping[str, Any]) -> None:
        worker = self._workers[rank]
        match values:
            case {"event": event}:
                self._report.note_saved(event)
                self._on_event(event_from_json(event))
            case {"failed": failed}:
                self._fail(Failure(rank=rank, **failed))
            case {"served": {"kind": "initialized"}}:
                self._initialized = True
                self._admit()
            case {"served": {"kind": "joined"}}:
                worker.joined = True
                self._admit()
            case {"served": {"kind": "evaluated", "sums": sums}}:
                self._do(self._coordinator.evaluated(rank, sums))
                self._report.evaluated(self._coordinator)
            case {"served": {"kind": "saved"}}:
                self._do(self._coordinator.saved())
            case {"served": report}:
                self._hear_push(rank, worker, report)
            case _:
                pass

    def _hear_push(self, rank: int, worker: _Worker, report: Mapping[str, Any]) -> None:
        deal = worker.deal
        if deal is None or deal.deal != report["deal"]:
            return
        self._report.pushed(rank, deal, report)
        sums = {"loss_sum": report["loss"], "examples": report["examples"]}
        worker.lr = report.get("lr", 0.0)
        match report["kind"]:
            case "offered":
                self._do(self._coordinator.offered(rank, deal.deal, deal.deal, **sums))
            case "applied":
                worker.deal = None
                self._do(self._coordinator.applied(rank, deal.deal, staleness=report["staleness"], **sums))
            case "refused":
                worker.deal = None
                self._do(self._coordinator.refused(rank, deal.deal))

    def _admit(self) -> None:
        """Workers that are ready join once every server serves and the first parameters are written."""
        if not self._initialized or len(self._serving) < len(self._server_specs):
            return
        for rank, worker in sorted(self._workers.items()):
            if worker.joined and rank not in self._coordinator.workers and rank not in self._orphans:
                if worker.lost_seconds is not None:
                    seconds = self._clock.monotonic_seconds() - worker.lost_seconds
                    worker.lost_seconds = None
                    self._on_event(
                        WorkerJoined(
                            at_seconds=self._clock.now_seconds(), rank=rank,
                            step=self._coordinator.progress.step, seconds=seconds,
                        )
                    )  # fmt: skip
                self._do(self._coordinator.join(rank))

    def _worker_gone(self, rank: int, code: int) -> None:
        worker = self._workers[rank]
        del self._names[worker.spec.name]
        if worker.retired or self._coordinator.finished:
            self._workers.pop(rank)
            return
        reason = f"worker {rank} {how_it_ended(code)}"
        if code > 0:
            self._fail(
                Failure(
                    rank=rank, kind="error", message=f"{reason} without a word", hint=f"see {worker.spec.log}",
                    traceback=tail(worker.spec.log), step=self._page.read()[rank].step,
                    at_monotonic=self._clock.monotonic_seconds(),
                )
            )  # fmt: skip
        step = self._coordinator.progress.step
        self._on_event(
            WorkerLost(
                at_seconds=self._clock.now_seconds(),
                rank=rank,
                step=step,
                reason=reason,
                pid=self._pids.get(rank, 0),
            )
        )
        worker.lost_seconds = self._clock.monotonic_seconds()
        deal = worker.deal
        if (
            deal is not None
            and not deal.grouped
            and finish_offers(list(self._memory.shards), rank, deal.deal)
        ):
            self._orphans[rank] = deal  # the servers have it: it counts, once they have applied it
        else:
            self._do(self._coordinator.leave(rank))
        self._count_loss(reason)
        alive = len(self._names)
        if self._replace:
            self._start_worker(rank)
        elif alive < self._min_workers:
            raise Fault(f"{reason}; {alive} workers are left, at least {self._min_workers} are needed")
        else:
            self._workers.pop(rank)

    def _settle_orphans(self) -> None:
        for rank, deal in list(self._orphans.items()):
            slots = [memory.slots[rank] for memory in self._memory.shards]
            if all(int(slot[Slot.ANSWERED]) >= deal.deal for slot in slots):
                del self._orphans[rank]
                staleness = max(int(slot[Slot.STALENESS]) for slot in slots)
                examples = sum(piece.num_examples for piece in deal.pieces)
                self._do(
                    self._coordinator.applied(
                        rank,
                        deal.deal,
                        staleness=staleness,
                        loss_sum=self._report.mean_loss * examples,
                        examples=examples,
                    )
                )
                self._do(self._coordinator.leave(rank))
                self._admit()

    def _count_loss(self, reason: str) -> None:
        self._losses += 1
        if self._losses > self._max_losses:
            raise Fault(
                f"{reason}; that is loss number {self._losses} of this run, {self._max_losses} are allowed",
                hint="look for the cause, or raise Elastic(max_losses=...)",
            )

    def _fail(self, failure: Failure) -> None:
        self._on_event(
            WorkerFailed(
                at_seconds=self._clock.now_seconds(), rank=failure.rank, step=failure.step,
                reason=failure.message, traceback=failure.traceback, error_kind=failure.kind,
            )
        )  # fmt: skip
        raise to_error(failure)

    def _end_stopped(self) -> None:
        """A worker that stays stopped is killed, and so replaced."""
        now = self._clock.monotonic_seconds()
        for name, rank in self._names.items():
            worker = self._workers[rank]
            if rank not in self._pids or not is_stopped(self._pids[rank]):
                worker.stopped_seconds = None
            elif worker.stopped_seconds is None:
                worker.stopped_seconds = now
            elif now - worker.stopped_seconds > STOPPED_SECONDS:
                self._engine.signal(name, signal.SIGKILL)

    # -- decisions ----------------------------------------------------------------------------------

    def _do(self, decisions: Sequence[Decision]) -> None:
        for decision in decisions:
            match decision:
                case Compute(worker=rank):
                    self._workers[rank].deal = decision
                    self._tell(rank, {"compute": compute_to_json(decision)})
                case Apply():
                    self._apply(decision)
                case EvaluateShare(worker=rank, index=index, count=count, step=step):
                    self._tell(rank, {"evaluate": {"index": index, "count": count, "step": step}})
                case SaveNow(worker=rank, step=step, extra=extra):
                    self._tell(rank, {"save": {"step": step, "extra": {**extra, **self._report.extra()}}})
                case EpochEnded(epoch=epoch, step=step):
                    self._report.epoch(epoch, step, self._coordinator)
                case Finish(worker=rank):
                    self._workers[rank].retired = True
                    self._tell(rank, {"finish": {}})
                case Dropped():
                    pass
                case _:
                    assert_never(decision)

    def _tell(self, rank: int, values: Mapping[str, Any]) -> None:
        self._engine.send(self._workers[rank].spec.name, values)

    def _apply(self, decision: Apply) -> None:
        members = [(member.worker, member.sequence, member.weight) for member in decision.members]
        rates = [self._workers[m.worker].lr for m in decision.members if m.worker in self._workers]
        group = _Group(
            values={"group": decision.group, "members": members, "lr": max(rates, default=0.0)},
            waiting=set(range(len(self._server_specs))),
            ranges=[
                fragment_range(memory.shape.num_elements, decision.fragment, decision.fragments)
                for memory in self._memory.shards
            ],
        )
        self._groups[decision.group] = group
        self._report.grouped(decision, group.values["lr"])
        for server in list(group.waiting):
            if server in self._serving:
                self._send_group(group, server)

    def _follow(self, order: Order) -> None:
        match order:
            case Halt():
                self._do(self._coordinator.order_halt())
            case Save():
                self._do(self._coordinator.order_save())
            case SwitchConsistency(mode=mode):
                self._switch(mode)
            case Resize(num_workers=count):
                self._resize(count)
            case _:
                assert_never(order)

    def _switch(self, mode: str) -> None:
        try:
            self._do(self._coordinator.switch(parse_consistency(mode)))
        except InputError as error:
            self._on_event(
                Notice(at_seconds=self._clock.now_seconds(), message=f"not switched: {error.message}")
            )
        else:
            step = self._coordinator.progress.step
            self._on_event(
                ConsistencyChanged(
                    at_seconds=self._clock.now_seconds(), mode=mode, step=step, reason="ordered"
                )
            )

    def _resize(self, count: int) -> None:
        ranks = sorted(self._workers)
        for rank in ranks[count:]:
            self._do(self._coordinator.retire(rank))
        free = [rank for rank in range(len(self._memory.worker_bells)) if rank not in self._workers]
        for rank in free[: max(0, count - len(ranks))]:
            self._start_worker(rank)
        self._on_event(
            Resized(
                at_seconds=self._clock.now_seconds(), num_workers=count, step=self._coordinator.progress.step
            )
        )


def how_it_ended(code: int) -> str:
    """The exit status in words.

    >>> how_it_ended(-9)
    'was killed by SIGKILL'
    """
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit status {code}"
