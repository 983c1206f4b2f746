"""What every engine offers: start workers, hear from them, stop them.

An engine knows nothing of training. It runs one entry function in one process per worker, carries JSON
lines to and from it over a private socket, and tells when a worker is gone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

WorkerName = str
"""Names a worker within one engine: ``"rank-0"``, ``"scout"``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """One worker to start.

    Args:
        name: unique within the engine while the worker lives.
        assignment: JSON-ready values, the first thing the worker receives.
        payload: bytes that follow the assignment, for live objects on their way to our own child.
        fds: open file descriptors the worker inherits, in order.
        log: file that takes the worker's standard output and error.
        cores: the cores it may run on; empty for any.
        environment: variables set in the worker.
    """

    name: WorkerName
    assignment: Mapping[str, Any]
    log: Path
    payload: bytes = b""
    fds: Sequence[int] = ()
    cores: tuple[int, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """The worker runs as process ``pid``."""

    name: WorkerName
    pid: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """The worker said something."""

    name: WorkerName
    values: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exited:
    """The worker is gone: ``code`` >= 0 is its exit status, < 0 the signal that ended it."""

    name: WorkerName
    code: int


Report = Started | Message | Exited


class Engine(Protocol):
    """Runs workers, and leaves none of them behind."""

    def start(self, spec: WorkerSpec) -> None:
        """Begin to start one worker; :class:`Started` follows."""
        ...

    def poll(self, timeout_seconds: float) -> list[Report]:
        """What happened since the last call; waits up to ``timeout_seconds`` for the first report."""
        ...

    def send(self, name: WorkerName, values: Mapping[str, Any]) -> None:
        """Say something to a worker; a worker already gone is not an error (its Exited tells)."""
        ...

    def stop_workers(self) -> None:
        """Kill every worker, whatever it does, and wait until all are gone; the engine can go on."""
        ...
