"""Noticing workers that hang or are stopped, from the progress page and /proc."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from leptonai.compute.cluster import Cluster
from leptonai.compute.engines.progress import ProgressPage
from leptonai.compute.engines.supervise import STOPPED_SECONDS, Hang, Limits, find_hang

# A worker whose group has broken up is told so by its own connections; one that is still in an exchange so
# long after is beyond them.
BREAK_SECONDS = 10.0


class Watch:
    """Follows the workers of one gang."""

    def __init__(self, page: ProgressPage, limits: Limits) -> None:
        self._page, self._limits = page, limits
        self._moved: dict[int, tuple[int, float]] = {}
        self._stopped: dict[int, float] = {}
        self._slowest_step_seconds = 0.0

    def regrouped(self) -> None:
        """The ranks are given anew."""
        self._moved.clear()
        self._stopped.clear()

    def look(self, pids: Mapping[int, int], now_seconds: float) -> Hang | None:
        """The worker that holds the gang up, if any does; ``pids`` are those of the ranks that run."""
        self._note_pace(now_seconds)
        self._note_stopped(pids, now_seconds)
        return find_hang(
            self._page.read(), now_seconds=now_seconds, slowest_step_seconds=self._slowest_step_seconds,
            stopped_since=self._stopped, limits=self._limits,
        )  # fmt: skip

    def _note_pace(self, now: float) -> None:
        for worker in self._page.read():
            step, since = self._moved.setdefault(worker.rank, (worker.step, now))
            if worker.step > step:
                # The first step includes warming up, and the start has a limit of its own.
                if step > 0:
                    pace = (now - since) / (worker.step - step)
                    self._slowest_step_seconds = max(self._slowest_step_seconds, pace, 1e-6)
                self._moved[worker.rank] = (worker.step, now)

    def _note_stopped(self, pids: Mapping[int, int], now: float) -> None:
        for rank in {*pids, *self._stopped}:
            if rank in pids and is_stopped(pids[rank]):
                self._stopped.setdefault(rank, now)
            else:
                self._stopped.pop(rank, None)

    def stopped(self, rank: int) -> bool:
        """Whether the worker was found stopped at the last look."""
        return rank in self._stopped

    def stuck(self, pids: Mapping[int, int], *, since_seconds: float, now_seconds: float) -> Hang | None:
        """One of these ranks that should have left its broken group by now; it broke at ``since_seconds``."""
        self._note_stopped(pids, now_seconds)
        page = self._page.read()
        slowest = self._slowest_step_seconds
        for rank in pids:
            phase, since = page[rank].phase, max(page[rank].since_seconds, since_seconds)
            limit = {
                "exchanging": max(BREAK_SECONDS, 3 * slowest),
                "computing": max(self._limits.floor_seconds, self._limits.factor * slowest),
                "starting": self._limits.start_seconds,
            }.get(phase)
            if rank in self._stopped and now_seconds - self._stopped[rank] >= STOPPED_SECONDS:
                return Hang(rank=rank, step=page[rank].step, reason=f"worker {rank} is stopped (SIGSTOP)")
            if limit is not None and now_seconds - since >= limit:
                words = f"worker {rank} did not leave its group within {limit:.0f} s"
                return Hang(rank=rank, step=page[rank].step, reason=words)
        return None


def limits_of(cluster: Cluster) -> Limits:
    """How long the workers of a cluster may be without progress."""
    if cluster.hang_seconds is None:
        return Limits()
    return Limits(floor_seconds=cluster.hang_seconds, factor=0.0)


def is_stopped(pid: int) -> bool:
    """Whether the process is stopped by a signal (state T), not by a debugger."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] == "T"
