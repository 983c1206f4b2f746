"""What leaves a gang: every event once, and the answers to the end of an epoch, even when a worker asks again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from leptonai.core.events import CheckpointFailed, CheckpointSaved, EpochDone, Evaluated, Event, StepDone


class Outbox:
    """Passes events on. After a loss the new worker 0 may tell again what the old one had told.

    Attributes:
        save_owed: a checkpoint was ordered and is not written yet.
    """

    def __init__(
        self,
        on_event: Callable[[Event], None],
        on_gate: Callable[[Mapping[str, Any]], tuple[bool, float | None]] | None,
    ) -> None:
        self._on_event, self._on_gate = on_event, on_gate
        self._told: dict[str, int] = {}
        self._answered: tuple[int, dict[str, Any]] | None = None
        self.save_owed = False

    def send(self, event: Event) -> None:
        """Pass an event on, unless it was told before."""
        if isinstance(event, StepDone | EpochDone | Evaluated):
            if event.step <= self._told.get(event.kind, -1):
                return
            self._told[event.kind] = event.step
        if isinstance(event, CheckpointSaved | CheckpointFailed):
            self.save_owed = False
        self._on_event(event)

    def answer_gate(self, question: Mapping[str, Any]) -> dict[str, Any]:
        """Ask whoever decides at the end of an epoch, once for each."""
        step = int(question["step"])
        if self._answered is None or self._answered[0] != step:
            stop, rate = self._on_gate(question) if self._on_gate is not None else (False, None)
            self._answered = step, {"stop": stop, "learning_rate": rate}
        return self._answered[1]
