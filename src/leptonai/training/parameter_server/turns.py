"""Threads of which one at a time runs, each until it waits: ordinary blocking code, in a fixed order."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

Condition = Callable[[], bool]
"""Whether what is waited for has happened; asked only while nobody runs."""


class _Unwind(BaseException):
    """Ends a thread that is no longer wanted, through its own clean-up."""


class Turn:
    """One thread's side: :meth:`wait` hands the turn back."""

    def __init__(self, work: Callable[[Turn], None]) -> None:
        self._work = work
        self._mine, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._until: Condition = lambda: True
        self._error: BaseException | None = None
        self._unwinding = False
        self.done = False

    def wait(self, until: Condition) -> None:
        """Return once ``until`` holds; the others run meanwhile."""
        if until():
            return
        self._until = until
        self._back.release()
        self._mine.acquire()
        if self._unwinding:
            raise _Unwind

    @property
    def ready(self) -> bool:
        """Whether it can go on."""
        return not self.done and self._until()

    def go_on(self) -> None:
        """Let it run until it waits or ends. Raises what it raised."""
        if not self._thread.ident:
            self._thread.start()
        self._mine.release()
        self._back.acquire()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def end(self) -> None:
        """Unwind the thread, wherever it waits."""
        if not self._thread.ident:
            return
        if not self.done:
            self._unwinding = True
            self._mine.release()
        self._thread.join()

    def _run(self) -> None:
        self._mine.acquire()
        try:
            if not self._unwinding:
                self._work(self)
        except _Unwind:
            pass
        except BaseException as error:  # the thread's death is told where it was let go on
            self._error = error
        finally:
            self.done = True
            self._back.release()


def take_turns(works: Sequence[Callable[[Turn], None]], otherwise: Callable[[], bool]) -> bool:
    """Run all ``works`` to their ends, the first that can go on first; each gets its :class:`Turn`.

    Args:
        otherwise: called when none can go on; does something that may let one, or answers False.

    Returns:
        Whether all came to their ends; False: they wait for what never comes.

    Raises:
        Whatever one of them raised; the others are unwound.
    """
    turns = [Turn(work) for work in works]
    try:
        while True:
            turn = next((turn for turn in turns if turn.ready), None)
            if turn is not None:
                turn.go_on()
            elif not otherwise():
                return all(turn.done for turn in turns)
    finally:
        for turn in turns:
            turn.end()
