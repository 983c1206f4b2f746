"""Running one gang of workers to its end: pass on what they say, form them anew when one is lost, end them all
when one fails."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Protocol, assert_never

from leptonai.compute.engines.base import Engine, Exited, Message, Report, Started, WorkerSpec
from leptonai.compute.engines.progress import MOST_WORKERS, ProgressPage
from leptonai.compute.engines.supervise import Hang, Limits
from leptonai.core.clock import Clock
from leptonai.core.control import Halt, Order, Resize, Save, SwitchConsistency, order_to_json, order_word
from leptonai.core.errors import InputError
from leptonai.core.events import Event, OrderTaken, WorkerFailed, WorkerStarted, event_from_json
from leptonai.core.faults import Role
from leptonai.launch.elastic_gang import Recovery
from leptonai.launch.failures import Failure, root_cause, silent_death, tail, to_error
from leptonai.launch.outbox import Outbox
from leptonai.launch.roster import Member, Roster
from leptonai.launch.run_faults import RunFaults
from leptonai.launch.run_hangs import RunHangs
from leptonai.launch.watch import Watch, is_stopped

__all__ = [
    "Failure",
    "Gang",
    "SignallingEngine",
    "interrupts",
    "is_stopped",
    "root_cause",
    "tail",
    "to_error",
]

POLL_SECONDS = 0.1
# After the first failure, how long the others may take to say what they saw, so that the cause can be told
# from the consequences.
GATHER_SECONDS = 0.5
# A worker that lost its peers says so at once; the peer's own word or death may need this long to be seen.
CAUSE_SECONDS = 1.0
HALT_SECONDS = 60.0


class SignallingEngine(Engine, Protocol):
    """An engine that can also send a signal to a worker."""

    def signal(self, name: str, number: signal.Signals) -> None: ...


class Gang:
    """One gang on an engine.

    Args:
        specs: one a worker, in order of rank.
        page: where the workers note their progress.
        on_event: takes every event, workers' and the gang's own.
        faults: injected ones; None: none.
        hangs: says early which rank holds the others up; None: nobody does.
        on_gate: answers the end of an epoch with (stop, new learning rate).
        on_charge: answers a private run's wish to release a step with how far it may go.
    """

    def __init__(
        self,
        engine: SignallingEngine,
        specs: Sequence[WorkerSpec],
        page: ProgressPage,
        *,
        limits: Limits,
        clock: Clock,
        on_event: Callable[[Event], None],
        faults: RunFaults | None = None,
        hangs: RunHangs | None = None,
        on_gate: Callable[[Mapping[str, Any]], tuple[bool, float | None]] | None = None,
        on_charge: Callable[[int], int] | None = None,
    ) -> None:
        self._on_charge = on_charge
        self._engine, self._page, self._clock = engine, page, clock
        self._faults = faults or RunFaults(None, num_workers=len(specs), clock=clock)
        self._faults.use(self._signal)
        self._roster = Roster(engine, specs, self._faults.assignment)
        self._watch, self._hangs = Watch(page, limits), hangs
        self._outbox = Outbox(on_event, on_gate)
        self._recovery = Recovery(
            engine, self._roster, page, self._watch, clock=clock, on_event=on_event, fail=self._raise,
            elastic_allowed=specs[0].assignment.get("backend") != "nccl",
            expected_losses=self._faults.expected_losses,
        )  # fmt: skip
        threads = int(specs[0].assignment.get("tuning", {}).get("threads", 1))
        cores = len(os.sched_getaffinity(0))
        self._most_workers = min(MOST_WORKERS, max(len(specs), cores // threads))
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._unheard: list[Report] = []
        self._ended: dict[str, Mapping[str, Any]] = {}
        self._gone: set[str] = set()
        self._failures: dict[str, Failure] = {}
        self._first_failure_seconds: float | None = None
        self._halted_seconds: float | None = None
        self.interrupted = False

    def order(self, order: Order) -> str:
        """Take an order, from any thread; it is passed on within a tenth of a second.

        Raises:
            InputError: this run cannot follow it.
        """
        if isinstance(order, SwitchConsistency):
            raise InputError(
                "this run has no parameter server, its workers are always in step",
                hint="start the job with parameter_server=ParameterServer(...)",
            )
        if isinstance(order, Resize):
            self._recovery.check_resize(order.num_workers, most=self._most_workers)
        self._orders.put(order)
        return "taken"

    def run(self) -> Mapping[str, Any]:
        """Start the workers and see them through; returns what rank 0 ended with.

        Raises:
            Fault, InputError, Refused: a worker failed; the caller closes the engine, which ends the others.
            KeyboardInterrupt: on the second Ctrl-C; the first one halts the run after the current step.
        """
        self._roster.start()
        with interrupts() as pressed:
            while not self._is_over():
                self._turn()
                if len(pressed) > 1:
                    raise KeyboardInterrupt
                if pressed and not self.interrupted:
                    self.interrupted = True
                    self._pass_on(Halt())
        return next(self._ended[member.name] for member in self._roster.group if member.name in self._ended)

    def _is_over(self) -> bool:
        return bool(self._ended) and all(member.name in self._gone for member in self._roster.group)

    def _turn(self) -> None:
        reports = [*self._unheard, *self._engine.poll(self._recovery.patience(POLL_SECONDS))]
        self._unheard = []
        for report in reports:
            self._take(report)
        for injected in self._faults.poll(
            {("worker", worker.rank): worker.step for worker in self._page.read()}
        ):
            self._outbox.send(injected)
        self._pass_orders()
        self._end_if_failed()
        if self._first_failure_seconds is None:
            self._look_for_hangs()
            if self._ended:
                self._end_the_rest()
            elif self._recovery.go_on():
                self._repeat_orders()

    def _end_the_rest(self) -> None:
        """One worker has ended, so all were in the last exchange: who waits for another group waits in vain."""
        for member in self._roster.group:
            if member.name not in self._ended and (member.ready or member.seat is None):
                self._engine.signal(member.name, signal.SIGKILL)

    def _take(self, report: Report) -> None:
        member = self._roster.find(report.name)
        if member is None:
            return
        match report:
            case Started(pid=pid):
                member.pid = pid
                rank = self._roster.rank_of(member)
                if rank is not None:
                    self._outbox.send(WorkerStarted(at_seconds=self._clock.now_seconds(), rank=rank, pid=pid))
            case Message(values=values):
                self._hear(member, values)
            case Exited(code=code):
                self._exited(member, code)

    def _hear(self, member: Member, values: Mapping[str, Any]) -> None:
        if "event" in values:
            self._outbox.send(event_from_json(values["event"]))
        elif "fault" in values:
            self._outbox.send(self._faults.heard(values["fault"]))
        elif "ready" in values:
            self._recovery.ready(member, values["ready"])
        elif "ended" in values:
            self._ended[member.name] = values["ended"]
        elif "failed" in values:
            rank = self._roster.rank_of(member)
            if rank is None:
                self._recovery.newcomer_failed(member, values["failed"]["message"])
            else:
                self._fail(member, Failure(**{**values["failed"], "rank": rank}))
        elif "charge" in values:
            assert self._on_charge is not None, "only private runs ask"
            self._engine.send(member.name, {"leased": self._on_charge(values["charge"])})
        elif "gate" in values:
            self._engine.send(member.name, {"gate": self._outbox.answer_gate(values["gate"])})

    def _exited(self, member: Member, code: int) -> None:
        self._gone.add(member.name)
        rank = self._roster.rank_of(member)
        if rank is None:
            self._recovery.newcomer_gone(member)
        elif not self._ended and member.name not in self._failures and self._counts():
            failure = self._recovery.known_reason(member) or silent_death(
                rank, code, member.spec.log, step=self._step_of(rank),
                at_monotonic=self._clock.monotonic_seconds(),
            )  # fmt: skip
            if self._recovery.elastic is None:
                self._fail(member, failure)
            else:
                self._recovery.lose(member, failure)

    def _counts(self) -> bool:
        """Whether a death says something: where one ends the run it may be the cause of what others said before."""
        return self._recovery.elastic is None or not self._failures

    def _signal(self, role: Role, index: int, number: signal.Signals) -> None:
        if index < len(self._roster.group):
            self._engine.signal(self._roster.group[index].name, number)

    def _step_of(self, rank: int) -> int:
        """Whole steps the worker has done, as far as the page tells."""
        return next((worker.step for worker in self._page.read() if worker.rank == rank), 0)

    # -- orders -----------------------------------------------------------------------------------

    def _pass_orders(self) -> None:
        while not self._orders.empty():
            order = self._orders.get()
            word = order_word(order)
            self._outbox.send(OrderTaken(at_seconds=self._clock.now_seconds(), order=word))
            self._pass_on(order)
        halted = self._halted_seconds
        if (
            self.interrupted
            and halted is not None
            and self._clock.monotonic_seconds() - halted > HALT_SECONDS
        ):
            raise KeyboardInterrupt

    def _pass_on(self, order: Order) -> None:
        match order:
            case Resize(num_workers=num_workers):
                self._recovery.resize(num_workers)
            case Halt() | Save():
                if isinstance(order, Save):
                    self._outbox.save_owed = True
                elif self._halted_seconds is None:
                    self._halted_seconds = self._clock.monotonic_seconds()
                if not self._roster.forming:
                    self._engine.send(self._roster.group[0].name, {"order": order_to_json(order)})
            case SwitchConsistency():
                raise AssertionError("refused in order()")
            case _:
                assert_never(order)

    def _repeat_orders(self) -> None:
        """The worker that held an order may be gone: a new group hears of what is not done yet."""
        for order, owed in ((Save(), self._outbox.save_owed), (Halt(), self._halted_seconds is not None)):
            if owed:
                self._engine.send(self._roster.group[0].name, {"order": order_to_json(order)})

    # -- failures ---------------------------------------------------------------------------------

    def _fail(self, member: Member, failure: Failure) -> None:
        self._failures[member.name] = failure
        if self._first_failure_seconds is None:
            self._first_failure_seconds = self._clock.monotonic_seconds()

    def _end_if_failed(self) -> None:
        since = self._first_failure_seconds
        if since is None:
            return
        waited = self._clock.monotonic_seconds() - since
        found = root_cause(list(self._failures.values()))
        everyone = len(self._failures) + len(self._ended) >= len(self._roster.group)
        if everyone or waited >= (CAUSE_SECONDS if found.lost_peer else GATHER_SECONDS):
            self._raise(found)

    def _raise(self, failure: Failure) -> None:
        self._outbox.send(
            WorkerFailed(
                at_seconds=self._clock.now_seconds(), rank=failure.rank, step=failure.step,
                reason=failure.message, traceback=failure.traceback, error_kind=failure.kind,
            )
        )  # fmt: skip
        raise to_error(failure)

    # -- hangs ------------------------------------------------------------------------------------

    def _look_for_hangs(self) -> None:
        now = self._clock.monotonic_seconds()
        if self._ended or (self._roster.forming and self._roster.generation > 0):
            if self._hangs is not None:
                self._hangs.regrouped()
            return  # while a group is formed, the recovery looks after its members
        pids = {
            rank: member.pid
            for rank, member in enumerate(self._roster.group)
            if member.pid and member.name not in self._gone and not self._faults.holds("worker", rank)
        }
        if self._hangs is not None:
            self._hangs.look(self._page.read(), pids)  # before one is ended, to see all as they are
        hang = self._watch.look(pids, now)
        if hang is not None:
            failure = self._hung(hang)
            if self._recovery.elastic is None or self._roster.generation == 0:
                self._raise(replace(failure, message=f"{failure.message}; the run was ended"))
            self._recovery.kill(self._roster.group[hang.rank], failure)

    def _hung(self, hang: Hang) -> Failure:
        """Ask the hung worker for its stacks, which go to its log, and wait a moment for them."""
        spec = self._roster.group[hang.rank].spec
        before = spec.log.stat().st_size if spec.log.exists() else 0
        self._engine.signal(spec.name, signal.SIGUSR1)
        can_answer = not self._watch.stopped(hang.rank)
        deadline = self._clock.monotonic_seconds() + (CAUSE_SECONDS if can_answer else 0.0)
        while self._clock.monotonic_seconds() < deadline and not (
            spec.log.exists() and spec.log.stat().st_size > before
        ):
            self._unheard += self._engine.poll(POLL_SECONDS / 2)
        return Failure(
            rank=hang.rank, kind="error", message=hang.reason, hint=f"see {spec.log}",
            traceback=tail(spec.log, from_byte=before), step=hang.step, at_monotonic=self._clock.monotonic_seconds(),
        )  # fmt: skip


@contextlib.contextmanager
def interrupts() -> Iterator[list[int]]:
    """Collects Ctrl-C (and SIGTERM where it means the same) in a list instead of raising.

    An exception could come between hearing of something and acting on it. Off the main thread, where no
    handler can be set, the list stays empty.
    """
    pressed: list[int] = []
    before: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is signal.default_int_handler:
                before[number] = signal.signal(number, lambda signum, _frame: pressed.append(signum))
    try:
        yield pressed
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
