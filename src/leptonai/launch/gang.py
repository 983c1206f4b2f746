"""Running one gang of workers to its end: pass on what they say, and end them all when one fails."""

from __future__ import annotations

import contextlib
import queue
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from leptonai.compute.engines.base import Engine, Exited, Message, Started, WorkerSpec
from leptonai.compute.engines.progress import ProgressPage
from leptonai.compute.engines.supervise import Hang, Limits, find_hang
from leptonai.core.clock import Clock
from leptonai.core.control import Halt, Order, order_to_json
from leptonai.core.errors import Fault, InputError, LeptonError, Refused
from leptonai.core.events import Event, OrderTaken, WorkerFailed, WorkerStarted, event_from_json

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


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How one worker failed; ``lost_peer``: only because another one did."""

    rank: int
    kind: str
    message: str
    hint: str | None
    traceback: str
    step: int
    at_monotonic: float
    lost_peer: bool = False


@dataclass
class _State:
    pids: dict[int, int] = field(default_factory=dict)
    ended: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    exited: dict[int, int] = field(default_factory=dict)
    failures: dict[int, Failure] = field(default_factory=dict)
    first_failure_seconds: float | None = None
    stopped_since: dict[int, float] = field(default_factory=dict)
    slowest_step_seconds: float = 0.0
    moved: dict[int, tuple[int, float]] = field(default_factory=dict)
    halted_seconds: float | None = None


class Gang:
    """One gang on an engine.

    Args:
        specs: one a worker, in order of rank.
        page: where the workers note their progress.
        on_event: takes every event, workers' and the gang's own.
        on_gate: answers the end of an epoch with (stop, new learning rate).
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
        on_gate: Callable[[Mapping[str, Any]], tuple[bool, float | None]] | None = None,
    ) -> None:
        self._engine, self._specs, self._page, self._limits = engine, specs, page, limits
        self._clock, self._on_event, self._on_gate = clock, on_event, on_gate
        self._ranks = {spec.name: rank for rank, spec in enumerate(specs)}
        self._orders: queue.SimpleQueue[Order] = queue.SimpleQueue()
        self._state = _State()
        self.interrupted = False

    def order(self, order: Order) -> str:
        """Take an order, from any thread; it is passed on within a tenth of a second."""
        self._orders.put(order)
        return "taken"

    def run(self) -> Mapping[str, Any]:
        """Start the workers and see them through; returns what rank 0 ended with.

        Raises:
            Fault, InputError, Refused: a worker failed; the caller closes the engine, which ends the others.
            KeyboardInterrupt: on the second Ctrl-C; the first one halts the run after the current step.
        """
        for spec in self._specs:
            self._engine.start(spec)
        with interrupts() as pressed:
            while len(self._state.ended) < len(self._specs) or len(self._state.exited) < len(self._specs):
                self._turn()
                if len(pressed) > 1:
                    raise KeyboardInterrupt
                if pressed and not self.interrupted:
                    self.interrupted = True
                    self._pass_on(Halt())
        return self._state.ended[0]

    def _turn(self) -> None:
        for report in self._engine.poll(POLL_SECONDS):
            rank = self._ranks.get(report.name)
            if rank is None:
                continue
            match report:
                case Started(pid=pid):
                    self._state.pids[rank] = pid
                    self._on_event(WorkerStarted(at_seconds=self._clock.now_seconds(), rank=rank, pid=pid))
                case Message(values=values):
                    self._hear(rank, values)
                case Exited(code=code):
                    self._state.exited[rank] = code
                    if rank not in self._state.ended and rank not in self._state.failures:
                        self._fail(self._silent_death(rank, code))
        self._pass_orders()
        self._end_if_failed()
        if self._state.first_failure_seconds is None:
            self._end_if_hung()

    def _hear(self, rank: int, values: Mapping[str, Any]) -> None:
        if "event" in values:
            self._on_event(event_from_json(values["event"]))
        elif "ended" in values:
            self._state.ended[rank] = values["ended"]
        elif "failed" in values:
            self._fail(Failure(rank=rank, **values["failed"]))
        elif "gate" in values and self._on_gate is not None:
            stop, rate = self._on_gate(values["gate"])
            self._engine.send(self._specs[rank].name, {"gate": {"stop": stop, "learning_rate": rate}})

    def _pass_orders(self) -> None:
        while not self._orders.empty():
            order = self._orders.get()
            word = type(order).__name__.lower()
            self._on_event(OrderTaken(at_seconds=self._clock.now_seconds(), order=word))
            self._pass_on(order)
        halted = self._state.halted_seconds
        if (
            self.interrupted
            and halted is not None
            and self._clock.monotonic_seconds() - halted > HALT_SECONDS
        ):
            raise KeyboardInterrupt

    def _pass_on(self, order: Order) -> None:
        self._engine.send(self._specs[0].name, {"order": order_to_json(order)})
        if isinstance(order, Halt) and self._state.halted_seconds is None:
            self._state.halted_seconds = self._clock.monotonic_seconds()

    # -- failures ---------------------------------------------------------------------------------

    def _fail(self, failure: Failure) -> None:
        self._state.failures[failure.rank] = failure
        if self._state.first_failure_seconds is None:
            self._state.first_failure_seconds = self._clock.monotonic_seconds()

    def _silent_death(self, rank: int, code: int) -> Failure:
        if code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            hint = "out of memory? see the kernel log" if code == -signal.SIGKILL else None
        else:
            how, hint = f"ended with exit status {code} without a word", f"see {self._specs[rank].log}"
        return Failure(
            rank=rank, kind="error", message=f"worker {rank} {how}", hint=hint,
            traceback=tail(self._specs[rank].log), step=self._page.read()[rank].step,
            at_monotonic=self._clock.monotonic_seconds(),
        )  # fmt: skip

    def _end_if_failed(self) -> None:
        since = self._state.first_failure_seconds
        if since is None:
            return
        waited = self._clock.monotonic_seconds() - since
        found = root_cause(list(self._state.failures.values()))
        everyone = len(self._state.failures) + len(self._state.ended) >= len(self._specs)
        if everyone or waited >= (CAUSE_SECONDS if found.lost_peer else GATHER_SECONDS):
            self._raise(found)

    def _raise(self, failure: Failure) -> None:
        self._on_event(
            WorkerFailed(
                at_seconds=self._clock.now_seconds(), rank=failure.rank, step=failure.step,
                reason=failure.message, traceback=failure.traceback, error_kind=failure.kind,
            )
        )  # fmt: skip
        raise to_error(failure)

    # -- hangs ------------------------------------------------------------------------------------

    def _end_if_hung(self) -> None:
        now = self._clock.monotonic_seconds()
        gang = self._page.read()
        for worker in gang:
            step, since = self._state.moved.setdefault(worker.rank, (worker.step, now))
            if worker.step > step:
                # The first step includes warming up, and the start has a limit of its own.
                if step > 0:
                    pace = (now - since) / (worker.step - step)
                    self._state.slowest_step_seconds = max(self._state.slowest_step_seconds, pace, 1e-6)
                self._state.moved[worker.rank] = (worker.step, now)
        for rank, pid in self._state.pids.items():
            if rank not in self._state.exited and is_stopped(pid):
                self._state.stopped_since.setdefault(rank, now)
            else:
                self._state.stopped_since.pop(rank, None)
        if self._state.ended:
            return
        hang = find_hang(
            gang, now_seconds=now, slowest_step_seconds=self._state.slowest_step_seconds,
            stopped_since=self._state.stopped_since, limits=self._limits,
        )  # fmt: skip
        if hang is not None:
            self._raise(self._hung(hang))

    def _hung(self, hang: Hang) -> Failure:
        """Ask the hung worker for its stacks, which go to its log, and wait a moment for them."""
        log = self._specs[hang.rank].log
        before = log.stat().st_size if log.exists() else 0
        self._engine.signal(self._specs[hang.rank].name, signal.SIGUSR1)
        can_answer = hang.rank not in self._state.stopped_since
        deadline = self._clock.monotonic_seconds() + (CAUSE_SECONDS if can_answer else 0.0)
        while self._clock.monotonic_seconds() < deadline and not (
            log.exists() and log.stat().st_size > before
        ):
            self._engine.poll(POLL_SECONDS / 2)
        return Failure(
            rank=hang.rank, kind="error", message=f"{hang.reason}; the run was ended", hint=f"see {log}",
            traceback=tail(log, from_byte=before), step=hang.step, at_monotonic=self._clock.monotonic_seconds(),
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


def root_cause(failures: Sequence[Failure]) -> Failure:
    """The failure the others follow from: the earliest that is not just the loss of a peer."""
    return min(failures, key=lambda failure: (failure.lost_peer, failure.at_monotonic))


def to_error(failure: Failure) -> LeptonError:
    """The failure as the launcher's own error, of the kind the worker raised."""
    if failure.kind == "InputError":
        return InputError(failure.message, hint=failure.hint)
    if failure.kind == "Refused":
        return Refused(failure.message, hint=failure.hint)
    if failure.kind == "Fault":
        return Fault(failure.message, hint=failure.hint)
    where = (
        "" if failure.message.startswith("worker ") else f"worker {failure.rank}, step {failure.step + 1}: "
    )
    return Fault(f"{where}{failure.message}", hint=failure.hint, detail=failure.traceback or None)


def is_stopped(pid: int) -> bool:
    """Whether the process is stopped by a signal (state T), not by a debugger."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] == "T"


def tail(path: Path, *, from_byte: int = 0, longest_bytes: int = 8000) -> str:
    """The end of a log, for a report."""
    try:
        with path.open("rb") as file:
            file.seek(max(from_byte, path.stat().st_size - longest_bytes))
            return file.read().decode(errors="replace").strip()
    except OSError:
        return ""
