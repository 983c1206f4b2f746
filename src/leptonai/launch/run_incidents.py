"""What goes wrong in a run, kept as incidents of the workspace."""

from __future__ import annotations

from collections.abc import Callable

from leptonai.core.clock import Clock
from leptonai.core.errors import LeptonError
from leptonai.core.events import Event, Notice
from leptonai.core.workspace import Workspace
from leptonai.operations.incidents.incident_store import IncidentStore
from leptonai.operations.incidents.run_alarms import RunAlarms


class RunIncidents:
    """Takes the events of a run. An incident that cannot be kept is told once and ends no run.

    Args:
        emit: takes the event that says so.
    """

    def __init__(
        self, workspace: Workspace, run_id: str, *, clock: Clock, emit: Callable[[Event], None]
    ) -> None:
        self._store = IncidentStore(workspace, clock=clock)
        self._alarms, self._clock, self._emit = RunAlarms(run_id), clock, emit
        self._broken = False

    def __call__(self, event: Event) -> None:
        for alarm in self._alarms(event):
            if self._broken:
                return
            try:
                self._store.take(alarm)
            except LeptonError as error:
                self._broken = True
                words = f"incidents of this run are no longer kept: {error.message}"
                self._emit(Notice(at_seconds=self._clock.now_seconds(), message=words))
