"""Enacts a fault script: half of it inside each process, half in the launcher.

A process asks its :class:`Saboteur` at known points, which is exact: a kill at step 30 comes after step 30 and
before step 31. What a process cannot do to itself, being stopped and going on, the launcher's
:class:`Director` does. The director also remembers what has fired, so that nothing fires again after a restart.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from leptonai.core.clock import Clock, SystemClock
from leptonai.core.fault_text import fault_text
from leptonai.core.faults import (
    CorruptFrame,
    CutLink,
    DiskFull,
    DropLink,
    Fault,
    FaultScript,
    Kill,
    Role,
    Slow,
    Stop,
    script_from_json,
    script_to_json,
    where_text,
)

Some = TypeVar("Some", bound=Fault)
Report = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Injected:
    """Fault ``number`` of the script has fired: ``what`` as its sentence, ``where``, and after which step."""

    number: int
    what: str
    where: str
    step: int


class Saboteur:
    """What goes wrong in one process, which asks at known points; without a script each costs a comparison.

    One thread calls :meth:`at_step`, :meth:`step_begins` and :meth:`before_save`; the rest any thread may.

    Args:
        fired: numbers of the faults that have fired in this run, also in processes before this one.
        report: told the number of a fault and the step before it takes effect. A kill follows at once, so the
            telling must be out of the process when ``report`` returns (written to a socket, say). Link faults
            are told by the thread that meets them.
        sleep: how a slow step is made.
    """

    def __init__(
        self,
        script: FaultScript,
        role: Role,
        index: int,
        *,
        report: Report,
        fired: Iterable[int] = (),
        clock: Clock | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        over = frozenset(fired)
        # Slowness belongs to a place, not a moment: it goes on after a restart.
        self._open: dict[int, Fault] = {
            number: fault
            for number, fault in enumerate(script.faults)
            if _concerns(fault, role, index) and (number not in over or isinstance(fault, Slow))
        }
        self._told = set(over)
        self._report, self._clock, self._sleep = report, clock or SystemClock(), sleep
        self._step = 0
        self._step_began: float | None = None
        self._cut_until = float("-inf")

    def step_begins(self) -> None:
        """From now on a step takes time; where this is not called, from the last :meth:`at_step` on."""
        if self._open:
            self._step_began = self._clock.monotonic_seconds()

    def at_step(self, step: int) -> None:
        """``step`` steps are done (of a server: its version is ``step``); kills, slows down, cuts the link."""
        if not self._open:
            return
        self._step = step
        self._slow_down(step)
        for number, cut in self._due(CutLink):
            self._fire(number)
            self._cut_until = max(self._cut_until, self._clock.monotonic_seconds() + cut.seconds)
        for number, kill in self._due(Kill):
            self._fire(number)
            _kill_self(kill.delay_seconds)
        self._step_began = self._clock.monotonic_seconds()

    def before_save(self, step: int) -> None:
        """A checkpoint after ``step`` steps is about to be written.

        Raises:
            OSError: ENOSPC, as from a full disk.
        """
        for number, full in self._all(DiskFull):
            if full.at <= step:
                self._step = step
                self._fire(number)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def on_frame(self, frame: bytes) -> bytes:
        """The frame, or its corruption: its first byte, part of every header, has all bits turned."""
        if self._open:
            for number, _ in self._due(CorruptFrame):
                if frame and self._fire(number):
                    return bytes([frame[0] ^ 0xFF]) + frame[1:]
        return frame

    def link_cut(self) -> bool:
        """Whether nothing may pass between this process and its peers now; connections stay as they are."""
        return self._cut_until > float("-inf") and self._clock.monotonic_seconds() < self._cut_until

    def link_drop(self) -> bool:
        """Whether to reset the connections now; True once a fault."""
        if not self._open:
            return False
        return any(self._fire(number) for number, _ in self._due(DropLink))

    def wait_while_cut(self) -> None:
        """Return when the link is up; for a process that does its own sending."""
        while self.link_cut():
            self._sleep(max(0.0, min(0.05, self._cut_until - self._clock.monotonic_seconds())))

    def _slow_down(self, step: int) -> None:
        began, pause, factor = self._step_began, 0.0, 1.0
        for number, slow in self._all(Slow):
            if slow.at <= step and (slow.until is None or step < slow.until):
                self._tell(number)
                pause, factor = pause + slow.seconds, factor * slow.factor
        if began is not None:
            pause += (factor - 1.0) * (self._clock.monotonic_seconds() - began)
        if pause > 0.0:
            self._sleep(pause)

    def _all(self, kind: type[Some]) -> list[tuple[int, Some]]:
        return [(number, fault) for number, fault in list(self._open.items()) if isinstance(fault, kind)]

    def _due(self, kind: type[Some]) -> list[tuple[int, Some]]:
        return [(number, fault) for number, fault in self._all(kind) if fault.at <= self._step]

    def _fire(self, number: int) -> bool:
        """Whether this call, and not another thread's, is the one that fires it."""
        if self._open.pop(number, None) is None:
            return False
        self._tell(number)
        return True

    def _tell(self, number: int) -> None:
        if number not in self._told:
            self._told.add(number)
            self._report(number, self._step)


class Director:
    """The launcher's half: stops and continues processes, and keeps the book of what has fired.

    Args:
        script: settled, see :meth:`~leptonai.core.faults.FaultScript.settle`.
        signal_to: sends a signal to the process of (role, index); one that is gone is no error there.
    """

    def __init__(
        self,
        script: FaultScript,
        signal_to: Callable[[Role, int, signal.Signals], None],
        clock: Clock | None = None,
    ) -> None:
        assert not script.draws, "settle the script first"
        self._script, self._signal_to, self._clock = script, signal_to, clock or SystemClock()
        self._fired: set[int] = set()
        self._stopped: dict[tuple[Role, int], float] = {}
        self._stops = {number: each for number, each in enumerate(script.faults) if isinstance(each, Stop)}

    def assignment(self) -> dict[str, Any] | None:
        """What a process is told when it starts, for :func:`saboteur_from`; None without a script."""
        if not self._script:
            return None
        return {"script": script_to_json(self._script), "fired": sorted(self._fired)}

    def heard(self, number: int, step: int) -> Injected:
        """A process said that a fault has fired there."""
        self._fired.add(number)
        fault = self._script.faults[number]
        return Injected(number=number, what=fault_text(fault), where=where_text(fault), step=step)

    def poll(self, progress: Mapping[tuple[Role, int], int]) -> list[Injected]:
        """Stop and continue what is due; call it several times a second.

        Args:
            progress: steps done of each process that runs.
        """
        if not self._stops and not self._stopped:
            return []
        now = self._clock.monotonic_seconds()
        for process, until in list(self._stopped.items()):
            if now >= until:
                del self._stopped[process]
                self._signal_to(*process, signal.SIGCONT)
        fired = []
        for number, stop in list(self._stops.items()):
            step = progress.get((stop.role, stop.index), -1)
            if step >= stop.at:
                del self._stops[number]
                process = (stop.role, stop.index)
                self._stopped[process] = max(self._stopped.get(process, now), now + stop.seconds)
                self._signal_to(*process, signal.SIGSTOP)
                fired.append(self.heard(number, step))
        return fired

    def is_stopped(self, role: Role, index: int) -> bool:
        """Whether the script holds this process stopped, so that it is not taken for hung."""
        return (role, index) in self._stopped

    def close(self) -> None:
        """Let everything that is stopped go on."""
        for process in self._stopped:
            self._signal_to(*process, signal.SIGCONT)
        self._stopped.clear()

    @property
    def pending(self) -> tuple[Fault, ...]:
        """Faults that have not fired, in the order of the script."""
        return tuple(each for number, each in enumerate(self._script.faults) if number not in self._fired)


def saboteur_from(
    assignment: Mapping[str, Any] | None, role: Role, index: int, *, report: Report
) -> Saboteur:
    """The saboteur of a process from :meth:`Director.assignment`."""
    values = assignment or {}
    script = script_from_json(values["script"]) if values else FaultScript()
    return Saboteur(script, role, index, report=report, fired=values.get("fired", ()))


def _concerns(fault: Fault, role: Role, index: int) -> bool:
    if isinstance(fault, Stop):
        return False  # the director's
    return isinstance(fault, DiskFull) or (fault.role, fault.index) == (role, index)


def _kill_self(delay_seconds: float) -> None:
    def kill() -> None:
        time.sleep(delay_seconds)
        os.kill(os.getpid(), signal.SIGKILL)

    if delay_seconds > 0.0:
        threading.Thread(target=kill, daemon=True, name="saboteur").start()
    else:
        os.kill(os.getpid(), signal.SIGKILL)
