"""Injected faults in a run: what each process is told of them, and what the launcher does itself."""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping
from typing import Any

from leptonai.core.clock import Clock
from leptonai.core.events import FaultInjected
from leptonai.core.faults import FaultScript, Role
from leptonai.launch.saboteur import Director, Injected

Signal = Callable[[Role, int, signal.Signals], None]


class RunFaults:
    """The fault script of one run; without one it does nothing.

    Raises:
        InputError: the script names a process that the run does not have.
    """

    def __init__(
        self,
        script: FaultScript | None,
        *,
        num_workers: int,
        num_servers: int = 0,
        total_steps: int = 1,
        clock: Clock,
    ) -> None:
        settled = (script or FaultScript()).settle(
            num_workers=num_workers, num_servers=num_servers, total_steps=total_steps
        )
        self.expected_losses = len(settled.faults)
        self._clock = clock
        self._signal: Signal = lambda role, index, number: None
        self._director = Director(
            settled, lambda role, index, number: self._signal(role, index, number), clock
        )

    def use(self, send: Signal) -> None:
        """How to reach the process of (role, index)."""
        self._signal = send

    def assignment(self) -> dict[str, Any] | None:
        """What a process that starts now is told."""
        return self._director.assignment()

    def heard(self, values: Mapping[str, Any]) -> FaultInjected:
        """A process said that a fault strikes there."""
        return self._event(self._director.heard(values["number"], values["step"]))

    def poll(self, progress: Mapping[tuple[Role, int], int]) -> list[FaultInjected]:
        """Stop and continue what is due."""
        return [self._event(injected) for injected in self._director.poll(progress)]

    def holds(self, role: Role, index: int) -> bool:
        """Whether the script keeps this process stopped just now."""
        return self._director.is_stopped(role, index)

    def close(self) -> None:
        """Let everything go on."""
        self._director.close()

    def _event(self, injected: Injected) -> FaultInjected:
        return FaultInjected(
            at_seconds=self._clock.now_seconds(), what=injected.what, where=injected.where, step=injected.step
        )
