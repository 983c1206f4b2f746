"""Peak memory of a process tree, as the largest sum of PSS (each shared page counted once) seen while it ran.

Needs Linux (``/proc/PID/smaps_rollup``).
"""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

import psutil

SAMPLES_PER_SECOND = 20


def pss_bytes(rollup: str) -> int:
    """The proportional set size in the text of a ``smaps_rollup``.

    >>> pss_bytes("Rss:  10 kB" + chr(10) + "Pss:  4 kB")
    4096
    """
    for line in rollup.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def tree_pss_bytes(pid: int) -> int:
    """Sum of PSS over ``pid`` and all its descendants now alive; 0 once it is gone."""
    try:
        root = psutil.Process(pid)
        pids = [pid, *(child.pid for child in root.children(recursive=True))]
    except psutil.NoSuchProcess:
        return 0
    return sum(_process_pss_bytes(each) for each in pids)


def _process_pss_bytes(pid: int) -> int:
    try:
        return pss_bytes(Path(f"/proc/{pid}/smaps_rollup").read_text())
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return 0  # it ended between being listed and being read


class PeakMemory:
    """Samples a process tree on a thread of its own for as long as the ``with`` block lasts.

    >>> import os
    >>> with PeakMemory(os.getpid()) as memory:
    ...     pass
    >>> memory.peak_bytes > 1_000_000
    True
    """

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._pid = pid
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, where: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            self.peak_bytes = max(self.peak_bytes, tree_pss_bytes(self._pid))
            if self._done.wait(1.0 / SAMPLES_PER_SECOND):
                return
