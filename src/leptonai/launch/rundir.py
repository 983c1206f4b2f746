"""A run directory: all there is to know of one run, in open formats, read strictly.

Files: job.json cluster.yaml plan.json events.jsonl result.json curve.png tensorboard/ checkpoints/ logs/.
"""

from __future__ import annotations

import fcntl
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from leptonai.compute.plan import Plan, plan_from_json
from leptonai.core.errors import InputError
from leptonai.core.events import Evaluated, Event, PrivacySpent, Resumed, RunEnded, RunStarted, StepDone
from leptonai.core.journal import read_journal
from leptonai.launch.curve import Curves, curves_of

Stepped = TypeVar("Stepped", StepDone, Evaluated)


@dataclass(frozen=True, slots=True)
class RunDirectory:
    """The files of one run. What is missing or damaged is an InputError that names the file.

    Args:
        path: of the directory; it must hold a journal. Use :func:`open_run` to check that.
    """

    path: Path

    @property
    def job_path(self) -> Path:
        return self.path / "job.json"

    @property
    def cluster_path(self) -> Path:
        return self.path / "cluster.yaml"

    @property
    def plan_path(self) -> Path:
        return self.path / "plan.json"

    @property
    def events_path(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def tensorboard_path(self) -> Path:
        return self.path / "tensorboard"

    @property
    def checkpoints_path(self) -> Path:
        return self.path / "checkpoints"

    @property
    def logs_path(self) -> Path:
        return self.path / "logs"

    @property
    def result_path(self) -> Path:
        return self.path / "result.json"

    @property
    def curve_path(self) -> Path:
        return self.path / "curve.png"

    def events(self) -> Iterator[Event]:
        """Every event, oldest first."""
        return read_journal(self.events_path)

    def curves(self) -> Curves:
        """Loss and metrics by step."""
        return curves_of(self.events())

    def job(self) -> Mapping[str, Any]:
        """The settings of the job."""
        return read_json_object(self.job_path)

    def plan(self) -> Plan:
        """The plan the run followed."""
        try:
            return plan_from_json(read_json_object(self.plan_path))
        except InputError as error:
            raise InputError(f"{self.plan_path}: {error.message}", hint=error.hint) from error

    def result(self) -> Mapping[str, Any]:
        """The result; there is none while the run goes on, nor after one that was killed."""
        return read_json_object(self.result_path)

    def summary(self) -> RunSummary:
        """What the journal says of the run; one without an end is ``running``, or ``lost`` if dead."""
        summary = summarise(self.events())
        if summary.status == "unfinished":
            return replace(summary, status="running" if self.is_being_written() else "lost")
        return summary

    def is_being_written(self) -> bool:
        """Whether a launcher has the journal open, which it locks until it ends, however it ends."""
        with self.events_path.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False


@dataclass(frozen=True, slots=True, kw_only=True)
class RunSummary:
    """A run in a few values, from its journal alone.

    ``status`` is that of the last RunEnded, or ``unfinished``; ``examples`` and ``seconds`` are sums over the
    steps that count, those taken again after a resume counted once. ``privacy`` is the (epsilon, delta) that a
    private run told last.
    """

    run_id: str = ""
    status: str = "unfinished"
    reason: str = ""
    num_workers: int = 0
    step: int = 0
    total_steps: int = 0
    steps_per_epoch: int = 1
    examples: int = 0
    seconds: float = 0.0
    started_seconds: float = 0.0
    ended_seconds: float | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    privacy: tuple[float, float] | None = None


def open_run(path: Path) -> RunDirectory:
    """The run at ``path``.

    Raises:
        InputError: there is no directory, or no run in it.
    """
    if not path.is_dir():
        raise InputError(f"{path}: no such run directory", hint="see: lepton runs list")
    run = RunDirectory(path)
    if not run.events_path.is_file():
        raise InputError(f"{path}: not a run directory, it has no events.jsonl", hint="see: lepton runs list")
    return run


def summarise(events: Iterable[Event]) -> RunSummary:
    """Fold a journal into its summary.

    >>> summarise([RunEnded(at_seconds=9.0, status="stopped", step=3, seconds=2.0)]).status
    'stopped'
    """
    start: RunStarted | None = None
    first_seconds = 0.0
    end: RunEnded | None = None
    spent: tuple[float, float] | None = None
    steps: list[StepDone] = []
    evaluated: list[Evaluated] = []
    for event in events:
        first_seconds = first_seconds or event.at_seconds
        match event:
            case RunStarted():
                start, end = event, None
                steps, evaluated = _until(steps, event.first_step), _until(evaluated, event.first_step)
            case Resumed():
                steps, evaluated = _until(steps, event.step), _until(evaluated, event.step)
            case StepDone():
                steps.append(event)
            case Evaluated():
                evaluated.append(event)
            case RunEnded():
                end = event
            case PrivacySpent():
                spent = event.epsilon, event.delta
            case _:
                pass
    return RunSummary(
        run_id=start.run_id if start else "",
        status=end.status if end else "unfinished",
        reason=end.reason if end else "",
        num_workers=start.num_workers if start else 0,
        step=max([end.step if end else 0, *(step.step for step in steps[-1:])]),
        total_steps=start.total_steps if start else 0,
        steps_per_epoch=max(1, start.steps_per_epoch) if start else 1,
        examples=sum(step.examples for step in steps),
        seconds=sum(step.seconds for step in steps),
        started_seconds=first_seconds,
        ended_seconds=end.at_seconds if end else None,
        metrics=dict(evaluated[-1].metrics) if evaluated else {},
        privacy=spent,
    )


def read_json_object(path: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        InputError: the file is missing, cannot be read, or holds something else.
    """
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise InputError(f"{path}: damaged, it is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise InputError(f"{path}: damaged, expected a JSON object, found {type(values).__name__}")
    return values


def _until(events: list[Stepped], step: int) -> list[Stepped]:
    return [event for event in events if event.step <= step]
