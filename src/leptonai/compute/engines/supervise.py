"""Deciding that a worker hangs: pure functions of what the progress page and /proc say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from leptonai.compute.engines.progress import Progress

STOPPED_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How long a phase may last, in seconds.

    Args:
        start: before the first step is done (imports, data, compilation).
        floor: shortest deadline of a step; a step may also take ``factor`` times the slowest so far.
    """

    start_seconds: float = 600.0
    floor_seconds: float = 60.0
    factor: float = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Hang:
    """Worker ``rank`` holds the gang up, and how that is known."""

    rank: int
    step: int
    reason: str


def find_hang(
    gang: Sequence[Progress],
    *,
    now_seconds: float,
    slowest_step_seconds: float,
    stopped_since: Mapping[int, float],
    limits: Limits,
) -> Hang | None:
    """The worker that holds the gang up, if any does.

    Workers that wait in an exchange wait for somebody: the one to name is not in an exchange and has the
    fewest steps. When all are in the exchange, the one that entered it first and never left is named.

    Args:
        now_seconds: monotonic.
        slowest_step_seconds: slowest step seen so far, 0 before the first.
        stopped_since: rank -> monotonic time since when its process is stopped (SIGSTOP).
    """
    for rank, since in stopped_since.items():
        if now_seconds - since >= STOPPED_SECONDS:
            return Hang(rank=rank, step=gang[rank].step, reason=f"worker {rank} is stopped (SIGSTOP)")
    if any(worker.phase == "pausing" for worker in gang):
        return None
    started = slowest_step_seconds > 0
    limit = (
        max(limits.floor_seconds, limits.factor * slowest_step_seconds) if started else limits.start_seconds
    )
    last_move = max(worker.since_seconds for worker in gang)
    if now_seconds - last_move < limit:
        return None
    suspects = [worker for worker in gang if worker.phase != "exchanging"] or list(gang)
    slowest = min(suspects, key=lambda worker: (worker.step, worker.since_seconds))
    doing = {"starting": "starting up", "computing": "computing", "exchanging": "waiting for the others"}[
        slowest.phase
    ]
    return Hang(
        rank=slowest.rank,
        step=slowest.step,
        reason=f"worker {slowest.rank} made no progress for {now_seconds - last_move:.1f} s while {doing}",
    )
