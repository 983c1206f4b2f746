"""What happens in a run, as typed frozen values; one JSON object each.

Events are facts and flow outward: workers and the launcher make them, the journal keeps them,
the progress display, TensorBoard and (later) operations read them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar

from leptonai.core.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Anything that happened; ``at_seconds`` is wall time, seconds since 1970."""

    kind: ClassVar[str] = ""
    at_seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """The launcher began: ``total_steps`` optimiser steps on ``num_workers`` workers."""

    kind = "run_started"
    run_id: str
    num_workers: int
    total_steps: int
    first_step: int
    steps_per_epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerStarted(Event):
    """The process of ``rank`` runs as ``pid``."""

    kind = "worker_started"
    rank: int
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class StepDone(Event):
    """Steps up to ``step`` (1-based count of finished optimiser steps) are done.

    ``loss`` is the mean training loss per example (None where it is private) and ``examples`` the number of
    examples since the previous StepDone, over all workers; ``seconds`` is the wall time they took.
    ``bytes_sent`` is what one worker handed to the exchange in that time. ``phases``: where one worker's time
    went, name to seconds (``input``, ``compute``, ``exchange``, ``update``); empty where nobody looked.
    ``rank_compute_seconds`` and ``rank_exchange_seconds``: those two phases of one step of each worker, in order of
    rank, the mean since the previous StepDone. ``gradient_norm``: of the last step, before clipping; None: not known.
    """

    kind = "step_done"
    step: int
    epoch: int
    loss: float | None
    examples: int
    seconds: float
    learning_rate: float
    bytes_sent: int = 0
    phases: Mapping[str, float] = dataclasses.field(default_factory=dict)
    rank_compute_seconds: tuple[float, ...] = ()
    rank_exchange_seconds: tuple[float, ...] = ()
    gradient_norm: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated(Event):
    """Metrics over the evaluation set after ``step`` steps (``epoch`` whole epochs done)."""

    kind = "evaluated"
    step: int
    epoch: int
    metrics: Mapping[str, float]
    examples: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochDone(Event):
    """Epoch ``epoch`` (1-based) is complete; ``metrics`` are means over its training examples."""

    kind = "epoch_done"
    step: int
    epoch: int
    metrics: Mapping[str, float]
    examples: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSaved(Event):
    """A complete checkpoint lies at ``path`` (relative to the run directory)."""

    kind = "checkpoint_saved"
    step: int
    path: str
    digest: str
    size_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFailed(Event):
    """A checkpoint could not be written; the run goes on with the last good one."""

    kind = "checkpoint_failed"
    step: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointDamaged(Event):
    """A checkpoint was found damaged and passed over."""

    kind = "checkpoint_damaged"
    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Resumed(Event):
    """Training goes on from the checkpoint at ``path``, after ``step`` steps."""

    kind = "resumed"
    step: int
    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerFailed(Event):
    """Worker ``rank`` ended badly; ``traceback`` is its own, as text (may be empty)."""

    kind = "worker_failed"
    rank: int
    step: int
    reason: str
    traceback: str
    error_kind: str = "Fault"


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLost(Event):
    """Worker ``rank`` (process ``pid``) is gone after ``step`` whole steps; the run goes on without it or refilled."""

    kind = "worker_lost"
    rank: int
    step: int
    reason: str
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerJoined(Event):
    """A new worker took ``rank`` and all workers have done a step since: ``step`` of them are done.

    ``seconds`` is the time from the loss (or from the pause, when the run was resized) to that step's end.
    """

    kind = "worker_joined"
    rank: int
    step: int
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Resized(Event):
    """The run goes on with ``num_workers`` workers after ``step`` steps."""

    kind = "resized"
    num_workers: int
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStarted(Event):
    """Parameter server ``server`` runs as process ``pid``."""

    kind = "server_started"
    server: int
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerRestarted(Event):
    """Parameter server ``server`` is back ``seconds`` after its death, with its shard at ``version``."""

    kind = "server_restarted"
    server: int
    seconds: float
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Staleness(Event):
    """How far workers drift apart, up to ``step``.

    ``histogram`` counts applied updates by their staleness (updates others made between read and apply);
    ``clocks`` are the steps of each worker. ``dropped`` updates came too late to count and were queued again,
    ``refused`` ones were not finite. Bytes are those sent and received by all workers so far.
    """

    kind = "staleness"
    step: int
    histogram: Mapping[str, int]
    clocks: Mapping[str, int]
    dropped: int
    refused: int
    bytes_sent: int
    bytes_received: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsistencyChanged(Event):
    """From ``step`` on the run follows the consistency setting ``mode``."""

    kind = "consistency_changed"
    mode: str
    step: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FaultInjected(Event):
    """A fault script did ``what`` at ``where`` (a worker, a server, a link) at ``step``."""

    kind = "fault_injected"
    what: str
    where: str
    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivacySpent(Event):
    """What the run has cost so far, after ``step`` steps, counting all that was released under its name.

    ``epsilon`` at ``delta``, rounded up; ``limit`` is the most it may cost, None where only the noise was given.
    """

    kind = "privacy_spent"
    step: int
    epsilon: float
    delta: float
    limit: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class OrderTaken(Event):
    """An order came in through the control socket and was passed on."""

    kind = "order_taken"
    order: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AlarmRaised(Event):
    """Something about the run looks wrong, or (``over``) no longer does.

    ``alarm`` names what, such as ``straggler``; ``subject`` whom it is about, such as ``rank 3``; ``severity`` is
    info, warning, critical or fatal; it began at ``since_seconds``. ``message`` is one sentence for a person,
    ``evidence`` the sentences it rests on, ``action`` the class of what would help.
    """

    kind = "alarm_raised"
    alarm: str
    subject: str
    severity: str
    since_seconds: float
    message: str
    evidence: tuple[str, ...] = ()
    action: str = "none"
    over: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Notice(Event):
    """Something a person should know, in one sentence."""

    kind = "notice"
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunEnded(Event):
    """The run is over: ``status`` is done, stopped, failed or interrupted."""

    kind = "run_ended"
    status: str
    step: int
    seconds: float
    reason: str = ""


EVENT_TYPES: Mapping[str, type[Event]] = MappingProxyType(
    {
        kind.kind: kind
        for kind in (
            RunStarted, WorkerStarted, StepDone, Evaluated, EpochDone, CheckpointSaved, CheckpointFailed,
            CheckpointDamaged, Resumed, WorkerFailed, WorkerLost, WorkerJoined, Resized, ServerStarted,
            ServerRestarted, Staleness, ConsistencyChanged, FaultInjected, PrivacySpent, OrderTaken, AlarmRaised,
            Notice, RunEnded,
        )
    }
)  # fmt: skip


def event_to_json(event: Event) -> dict[str, Any]:
    """The event as JSON-ready values, its kind under ``"kind"``.

    >>> event_to_json(Notice(at_seconds=1.0, message="hello"))
    {'kind': 'notice', 'at_seconds': 1.0, 'message': 'hello'}
    """
    values: dict[str, Any] = {"kind": event.kind}
    for field in dataclasses.fields(event):
        value = getattr(event, field.name)
        values[field.name] = dict(value) if isinstance(value, Mapping) else value
    return values


def event_from_json(values: Mapping[str, Any]) -> Event:
    """Inverse of :func:`event_to_json`; unknown keys are ignored so that old readers read new journals.

    Raises:
        InputError: the kind is unknown or a field is missing.
    """
    kind = EVENT_TYPES.get(str(values.get("kind")))
    if kind is None:
        raise InputError(f"unknown event kind {values.get('kind')!r}")
    names = {field.name for field in dataclasses.fields(kind)}
    kept: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value  # JSON has no tuples
        for name, value in values.items()
        if name in names
    }
    try:
        return kind(**kept)
    except TypeError as error:
        raise InputError(f"event {kind.kind!r} is incomplete: {error}") from error
