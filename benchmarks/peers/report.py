"""How a peer says what it did: JSON lines in a file, cheap enough not to slow it down.

``{"first_step_at": t}`` after the first optimiser step; ``{"examples": n, "at": t}`` (examples so far over
all workers, wall time) about four times a second; ``{"epoch": k, "seconds": s, "accuracy": a, "at": t}``
after measuring.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

MARK_SECONDS = 0.25


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """What every peer is told on its command line."""

    data: Path
    report: Path
    steps: int
    epochs: int
    seed: int
    accuracy: float
    """Stop once this accuracy is measured; above 1 for never."""
    examples: int
    """Training images to use; 0 for all."""
    evaluate: bool
    """Whether to measure the accuracy at all."""


def read_arguments(argv: list[str] | None = None) -> Arguments:
    """Parse the words that the benchmark passes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--accuracy", type=float, default=2.0)
    parser.add_argument("--examples", type=int, default=0)
    parser.add_argument("--evaluate", action="store_true")
    return Arguments(**vars(parser.parse_args(argv)))


class Reporter:
    """Writes one peer's lines; on ranks other than 0 it is silent."""

    def __init__(self, path: Path, *, rank: int = 0) -> None:
        self._file = path.open("a", buffering=1) if rank == 0 else None
        self._examples = 0
        self._step_at = 0.0
        self._marked_at = 0.0

    def step(self, examples: int) -> None:
        """One optimiser step over ``examples`` examples (all workers together) is done."""
        if self._file is None:
            return
        self._step_at = time.time()
        if self._examples == 0:
            self._write({"first_step_at": self._step_at})
        self._examples += examples
        if self._step_at - self._marked_at >= MARK_SECONDS:
            self._mark()

    def epoch(self, number: int, *, seconds: float, accuracy: float) -> None:
        """The accuracy (share of the test set) after ``number`` epochs; ``seconds`` of training alone."""
        self._write({"epoch": number, "seconds": seconds, "accuracy": accuracy, "at": time.time()})

    def close(self) -> None:
        """Mark the last step; the file is complete afterwards."""
        if self._file is not None:
            if self._marked_at < self._step_at:
                self._mark()
            self._file.close()

    def _mark(self) -> None:
        self._marked_at = self._step_at
        self._write({"examples": self._examples, "at": self._step_at})

    def _write(self, values: dict[str, float]) -> None:
        if self._file is not None:
            self._file.write(json.dumps(values) + "\n")
