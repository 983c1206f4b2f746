"""Waiting for a word in shared memory to change: look a while, then sleep until rung."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable

# Sleeping and being woken costs 40 to 140 microseconds between two cores; looking again costs nothing as long
# as the core is not needed by someone else, so the look is short and yields the core in between.
SPIN_SECONDS = 100e-6
# A ring can be lost (the ringer was killed between the word and the ring), so a sleeper looks again this often.
LOOK_AGAIN_SECONDS = 0.05


class Bell:
    """An eventfd that wakes one sleeping process.

    Args:
        fd: the eventfd, made by :meth:`create` in the process that starts the others.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd

    @classmethod
    def create(cls) -> Bell:
        """A fresh bell."""
        return cls(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))

    def ring(self) -> None:
        """Wake who sleeps on it."""
        os.eventfd_write(self.fd, 1)

    def quiet(self) -> None:
        """Take back the rings so far."""
        try:
            os.eventfd_read(self.fd)
        except BlockingIOError:
            return

    def close(self) -> None:
        """Give it up on this side."""
        os.close(self.fd)


def wait_until(
    happened: Callable[[], bool],
    bell: Bell,
    *,
    timeout_seconds: float,
    sleeping: Callable[[bool], None] = lambda _: None,
) -> bool:
    """Wait for ``happened``; False when ``timeout_seconds`` passed first.

    Args:
        sleeping: told True before sleeping and False after, so that ringers ring only then.
    """
    deadline = time.monotonic() + timeout_seconds
    spin_until = min(deadline, time.monotonic() + SPIN_SECONDS)
    while not happened():
        if time.monotonic() < spin_until:
            os.sched_yield()
            continue
        sleeping(True)
        try:
            left = deadline - time.monotonic()
            if left <= 0:
                return happened()
            if not happened():  # what came before the flag was set rang no bell
                select.select([bell.fd], [], [], min(left, LOOK_AGAIN_SECONDS))
                bell.quiet()
        finally:
            sleeping(False)
    return True
