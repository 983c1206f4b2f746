"""Contestants that repeat one small piece of work: they time each round and write the seconds down."""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import Contestant
from benchmarks.progress import Mark, Progress, Run, Unmeasured, median


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """What a contestant is told: how often to do its work, over how many numbers, and where to report."""

    part: str
    report: Path
    elements: int
    rows: int
    warm: int
    rounds: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much work: float32 numbers, or rows of a table; rounds before the clock starts, and rounds that count."""

    elements: int = 0
    rows: int = 0
    warm: int = 3
    rounds: int = 12


def read_words(parts: Sequence[str] = ("",), argv: Sequence[str] | None = None) -> Rounds:
    """Parse the words that the benchmark passes; ``parts`` are the pieces of work that a module knows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", nargs="?", choices=parts, default=parts[0])
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--elements", type=int, default=0, help="float32 numbers of the parameters")
    parser.add_argument("--rows", type=int, default=0, help="rows of the embedding table")
    parser.add_argument("--warm", type=int, default=2, help="rounds before the clock starts")
    parser.add_argument("--rounds", type=int, default=5)
    return Rounds(**vars(parser.parse_args(argv)))


def time_rounds(work: Callable[[], object], asked: Rounds) -> None:
    """Do the work and report the seconds of each round that counts."""
    for _ in range(asked.warm):
        work()
    seconds = []
    for _ in range(asked.rounds):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    report_seconds(asked.report, seconds)


def report_seconds(report: Path, seconds: Sequence[float]) -> None:
    """Write down the rounds, one JSON line each."""
    report.write_text("".join(json.dumps({"seconds": each}) + "\n" for each in seconds))


def from_rounds(lines: Sequence[str]) -> Progress:
    """Read such a report: one mark a round, on a clock of the rounds alone.

    >>> from_rounds(['{"seconds": 2.0}', '{"seconds": 1.0}']).marks[1]
    Mark(at_seconds=3.0, examples=2)

    Raises:
        Unmeasured: no round was reported.
    """
    seconds = [float(json.loads(line)["seconds"]) for line in lines]
    if not seconds:
        raise Unmeasured("no round was reported")
    sums = itertools.accumulate(seconds)
    return Progress(
        first_step_at_seconds=0.0,
        marks=tuple(Mark(at_seconds=at, examples=number) for number, at in enumerate(sums, 1)),
    )


def seconds_per_round(run: Run) -> float:
    """The median over the rounds of one run."""
    ends = [0.0, *(mark.at_seconds for mark in run.progress.marks)]
    return median([after - before for before, after in itertools.pairwise(ends)])


def rounds_per_second(run: Run) -> float:
    """Its inverse."""
    return 1.0 / seconds_per_round(run)


def contestant(
    name: str,
    module: str,
    part: str,
    size: Size,
    *,
    python: Callable[[], Path],
    environment: Mapping[str, str],
) -> Contestant:
    """``python -m module part`` with the words of :func:`read_words`."""

    def command(folder: Path, turn: int) -> list[str]:
        words = [part] if part else []
        words += ["--report", str(folder / "rounds.jsonl"), "--elements", str(size.elements)]
        words += ["--rows", str(size.rows), "--warm", str(size.warm), "--rounds", str(size.rounds)]
        return [str(python()), "-m", module, *words]

    return Contestant(name=name, command=command, read=_read, environment=environment)


def _read(folder: Path) -> Progress:
    return from_rounds((folder / "rounds.jsonl").read_text().splitlines())
