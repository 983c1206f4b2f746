"""What a run tells about itself, whoever ran it, and the numbers read from it: pure functions."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """``examples`` in all had been trained on at wall time ``at_seconds``."""

    at_seconds: float
    examples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """``value`` (share of the test set) had been measured by wall time ``at_seconds``."""

    at_seconds: float
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """The mean loss over the test set had been measured as ``value`` by ``at_seconds``, after ``step`` steps."""

    at_seconds: float
    step: int
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """All that is read from one run's report; ``first_step_at_seconds`` is None where steps were not timed.

    ``numbers`` and ``samples`` are what else a contestant reported, by names of its theme's own.
    """

    first_step_at_seconds: float | None = None
    marks: tuple[Mark, ...] = ()
    accuracies: tuple[Accuracy, ...] = ()
    losses: tuple[Loss, ...] = ()
    numbers: Mapping[str, float] = field(default_factory=dict)
    samples: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One finished run of one contestant."""

    contestant: str
    started_at_seconds: float
    ended_at_seconds: float
    progress: Progress
    peak_bytes: int | None = None
    notes: tuple[str, ...] = ()


class Unmeasured(Exception):
    """A number asked for is not in the runs; the text says why."""


def from_report(lines: Iterable[str]) -> Progress:
    """Read the JSON lines of :mod:`benchmarks.peers.report`.

    >>> from_report(['{"first_step_at": 5.0}', '{"examples": 256, "at": 5.0}']).first_step_at_seconds
    5.0

    Raises:
        Unmeasured: nothing was reported.
    """
    first: float | None = None
    marks: list[Mark] = []
    accuracies: list[Accuracy] = []
    for values in _objects(lines):
        if "first_step_at" in values:
            first = float(values["first_step_at"])
        elif "examples" in values:
            marks.append(Mark(at_seconds=float(values["at"]), examples=int(values["examples"])))
        elif "accuracy" in values:
            accuracies.append(Accuracy(at_seconds=float(values["at"]), value=float(values["accuracy"])))
    if first is None and not accuracies:
        raise Unmeasured("the run reported neither a step nor an accuracy")
    return Progress(first_step_at_seconds=first, marks=tuple(marks), accuracies=tuple(accuracies))


def from_events(lines: Iterable[str]) -> Progress:
    """Read the ``events.jsonl`` of one of our runs.

    The first ``step_done`` may stand for several steps; its own ``seconds`` then place the first of them.

    Raises:
        Unmeasured: no optimiser step was reported.
    """
    first: float | None = None
    examples = 0
    marks: list[Mark] = []
    accuracies: list[Accuracy] = []
    losses: list[Loss] = []
    numbers: dict[str, float] = {}
    for values in _objects(lines):
        at_seconds = float(values.get("at_seconds", 0.0))
        if values.get("kind") == "step_done":
            examples += int(values["examples"])
            if first is None:
                first = first_step_at(
                    at_seconds, num_steps=int(values["step"]), seconds=float(values["seconds"])
                )
            marks.append(Mark(at_seconds=at_seconds, examples=examples))
        elif values.get("kind") == "staleness":
            numbers = {name: float(values[name]) for name in ("bytes_sent", "bytes_received")}
        elif values.get("kind") == "evaluated":
            metrics = values["metrics"]
            if "accuracy" in metrics:
                accuracies.append(Accuracy(at_seconds=at_seconds, value=float(metrics["accuracy"])))
            if "loss" in metrics:
                losses.append(
                    Loss(at_seconds=at_seconds, step=int(values["step"]), value=float(metrics["loss"]))
                )
    if first is None:
        raise Unmeasured("the run reported no optimiser step")
    return Progress(
        first_step_at_seconds=first,
        marks=tuple(marks),
        accuracies=tuple(accuracies),
        losses=tuple(losses),
        numbers=numbers,
    )


def first_step_at(at_seconds: float, *, num_steps: int, seconds: float) -> float:
    """When the first of ``num_steps`` even steps ended that together took ``seconds`` until ``at_seconds``.

    >>> first_step_at(10.0, num_steps=4, seconds=2.0)
    8.5
    """
    return at_seconds - seconds * (num_steps - 1) / max(num_steps, 1)


def samples_per_second(run: Run, *, warmup_seconds: float) -> float:
    """Examples a second from the first mark ``warmup_seconds`` or more after the first step to the last.

    Raises:
        Unmeasured: fewer than two marks lie after the warm-up.
    """
    begin = _first_step(run) + warmup_seconds
    steady = [mark for mark in run.progress.marks if mark.at_seconds >= begin]
    if len(steady) < 2 or steady[-1].at_seconds <= steady[0].at_seconds:
        raise Unmeasured(f"{run.contestant}: too short a run to measure its speed")
    return (steady[-1].examples - steady[0].examples) / (steady[-1].at_seconds - steady[0].at_seconds)


def startup_seconds(run: Run) -> float:
    """From the command to the end of the first optimiser step."""
    return _first_step(run) - run.started_at_seconds


def seconds_to_accuracy(run: Run, accuracy: float) -> float:
    """From the command to the first measurement of at least ``accuracy``.

    Raises:
        Unmeasured: it was never reached.
    """
    for reached in run.progress.accuracies:
        if reached.value >= accuracy:
            return reached.at_seconds - run.started_at_seconds
    best = max((reached.value for reached in run.progress.accuracies), default=0.0)
    raise Unmeasured(f"{run.contestant}: never measured {accuracy:.2%} (best {best:.2%})")


def final_accuracy(run: Run) -> float:
    """The last accuracy measured.

    Raises:
        Unmeasured: none was.
    """
    if not run.progress.accuracies:
        raise Unmeasured(f"{run.contestant}: measured no accuracy")
    return run.progress.accuracies[-1].value


def final_loss(run: Run) -> float:
    """The last loss measured on the test set.

    Raises:
        Unmeasured: none was.
    """
    if not run.progress.losses:
        raise Unmeasured(f"{run.contestant}: measured no loss")
    return run.progress.losses[-1].value


def first_at_loss(run: Run, loss: float) -> Loss:
    """The first measurement of at most ``loss``.

    Raises:
        Unmeasured: it was never reached.
    """
    for reached in run.progress.losses:
        if reached.value <= loss:
            return reached
    best = min((reached.value for reached in run.progress.losses), default=math.nan)
    raise Unmeasured(f"{run.contestant}: never measured a loss of {loss:.4f} (best {best:.4f})")


def number(run: Run, name: str) -> float:
    """What the run reported under ``name``.

    Raises:
        Unmeasured: nothing.
    """
    if name not in run.progress.numbers:
        raise Unmeasured(f"{run.contestant}: reported no {name}")
    return run.progress.numbers[name]


def samples(run: Run, name: str) -> Sequence[float]:
    """The list of numbers the run reported under ``name``.

    Raises:
        Unmeasured: none.
    """
    found = run.progress.samples.get(name, ())
    if not found:
        raise Unmeasured(f"{run.contestant}: reported no {name}")
    return found


def peak_bytes(run: Run) -> float:
    """The largest memory of the process tree seen during the run.

    Raises:
        Unmeasured: memory was not sampled.
    """
    if run.peak_bytes is None:
        raise Unmeasured(f"{run.contestant}: memory was not sampled")
    return float(run.peak_bytes)


def median(values: Sequence[float]) -> float:
    """Middle value; the mean of the two middle ones for an even count.

    >>> median([3.0, 1.0, 2.0])
    2.0

    Raises:
        Unmeasured: there are none.
    """
    if not values:
        raise Unmeasured("no run succeeded")
    return float(statistics.median(values))


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Smallest and largest value."""
    return min(values), max(values)


def _first_step(run: Run) -> float:
    if run.progress.first_step_at_seconds is None:
        raise Unmeasured(f"{run.contestant}: did not time its steps")
    return run.progress.first_step_at_seconds


def _objects(lines: Iterable[str]) -> Iterable[Mapping[str, Any]]:
    for line in lines:
        if line.strip():
            values = json.loads(line)
            if isinstance(values, dict):
                yield values
