"""Real runs, with one engine for all of a test session: its imports are what takes long."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from leptonai.compute.cluster import Cluster, Device, Node
from leptonai.compute.engines.local import LocalEngine
from leptonai.core.events import Event
from leptonai.core.faults import FaultScript
from leptonai.launch.engine import start_engine
from leptonai.launch.jobs import JobFile
from leptonai.launch.request import RunResult, TrainRequest
from leptonai.launch.run import train

TOY = Path(__file__).parent / "jobs" / "toy.py"


@pytest.fixture(scope="session")
def engine() -> Iterator[LocalEngine]:
    with start_engine() as started:
        yield started


def cluster(num_workers: int, **changes: Any) -> Cluster:
    """This machine with so many workers of one thread."""
    node = Node(name="here", devices=(Device(kind="cpu", cores=2),))
    settings = {"name": "test", "nodes": (node,), "num_workers": num_workers, "threads_per_worker": 1}
    return Cluster(**{**settings, **changes})


class Runner:
    """Runs jobs in directories of one test; ``events`` are those of the last run."""

    def __init__(self, engine: LocalEngine, home: Path) -> None:
        self.engine, self.home = engine, home
        self.events: list[Event] = []

    def write_job(self, name: str, expression: str) -> Path:
        """A job file whose ``job`` is an expression over the toy module."""
        path = self.home / f"{name}.py"
        path.write_text(
            f"import sys\nsys.path.insert(0, {str(TOY.parent)!r})\n"
            f"from toy import *\nfrom served_toy import *\nfrom private_toy import *\njob = {expression}\n"
        )
        return path

    def __call__(
        self,
        job: Path | str = TOY,
        *,
        run: str = "run",
        workers: int = 2,
        listener: Callable[[Event], None] = lambda event: None,
        resume: bool = False,
        overrides: tuple[str, ...] = (),
        autotune: bool = False,
        faults: FaultScript | None = None,
        **changes: Any,
    ) -> RunResult:
        self.events = []

        def hear(event: Event) -> None:
            self.events.append(event)
            listener(event)

        path = job if isinstance(job, Path) else self.write_job(run, job)
        request = TrainRequest(
            job=JobFile(path=path), cluster=cluster(workers, **changes), cluster_text="nodes: []\n",
            home=self.home / "home", run_dir=self.home / run, resume=resume, overrides=overrides, autotune=autotune,
            faults=faults,
        )  # fmt: skip
        return train(request, on_event=hear, engine=self.engine)

    def of(self, kind: type[Event]) -> list[Any]:
        """The last run's events of one type."""
        return [event for event in self.events if isinstance(event, kind)]


@pytest.fixture
def run(engine: LocalEngine, tmp_path: Path) -> Runner:
    return Runner(engine, tmp_path)
