"""What looks at a run while it goes on: its incidents, the watch of its curves and ranks, its metrics."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import queue
from collections.abc import Callable, Mapping
from pathlib import Path

from leptonai.core.clock import Clock
from leptonai.core.events import Event, Notice
from leptonai.core.workspace import Workspace
from leptonai.launch.run_incidents import RunIncidents
from leptonai.operations.agent.collector import collector_named
from leptonai.operations.agent.run_agent import RunAgent
from leptonai.operations.watch.training_watch import TrainingWatch

METRICS_FOLDER = "metrics"
"""In the run's directory: the latest metrics, those not yet sent among them."""
AGENT_VARIABLE = "LEPTON_RUN_AGENT"
"""``off``: no agent in runs."""

Sink = Callable[[Event], None]


def watch_run(
    stack: contextlib.ExitStack, run_dir: Path, workspace: Workspace, *, clock: Clock, emit: Sink
) -> list[Sink]:
    """Sinks for the events of a run, to stand after those that keep them; what they find is emitted.

    Args:
        stack: ends them.
        emit: takes their own events.
    """
    watch = TrainingWatch()

    def watched(event: Event) -> None:
        for alarm in watch(event):
            emit(alarm)

    sinks: list[Sink] = [RunIncidents(workspace, run_dir.name, clock=clock, emit=emit), watched]
    agent = _agent(run_dir, os.environ, clock=clock, emit=emit)
    if agent is not None:
        sinks.append(stack.enter_context(agent))
    return sinks


def _agent(run_dir: Path, environment: Mapping[str, str], *, clock: Clock, emit: Sink) -> AgentOfRun | None:
    if environment.get(AGENT_VARIABLE, "") == "off" or importlib.util.find_spec("cramjam") is None:
        return None  # without the extra ``operations`` nobody asked for metrics
    url, token_file = collector_named(environment) or (None, None)
    return AgentOfRun(run_dir, url, token_file, clock=clock, emit=emit)


class AgentOfRun:
    """An agent in a run; its troubles are told as events, in the run's own thread."""

    def __init__(
        self, run_dir: Path, url: str | None, token_file: Path | None, *, clock: Clock, emit: Sink
    ) -> None:
        self._troubles: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._clock, self._emit = clock, emit
        self._agent = RunAgent(
            run_dir / METRICS_FOLDER, url, token_file, run_dir.name, on_trouble=self._troubles.put
        )

    def __call__(self, event: Event) -> None:
        """Take over what an event says, and tell what went wrong since the last."""
        self._agent(event)
        while not self._troubles.empty():
            words = f"metrics: {self._troubles.get_nowait()}"
            self._emit(Notice(at_seconds=self._clock.now_seconds(), message=words))

    def __enter__(self) -> AgentOfRun:
        self._agent.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._agent.close()
