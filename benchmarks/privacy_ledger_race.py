"""Many who want the same privacy budget at once: is more given out than was granted, is anyone turned away wrongly?

``python -m benchmarks.privacy_ledger_race URL`` runs it on the database of that URL, which should be empty.
"""

from __future__ import annotations

import multiprocessing
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from leptonai.core.clock import SystemClock
from leptonai.core.errors import Refused
from leptonai.core.workspace import Workspace
from leptonai.security.privacy.accounting.mechanisms import Charge, SampledGaussian
from leptonai.security.privacy.ledger.composing import TIGHT, Accounting, Costs
from leptonai.security.privacy.ledger.ledger import Dataset, Ledger

DATASET = Dataset("5e" * 32, "contested")
EPSILON, DELTA = 3.0, 1e-5
PROCESSES = 8
_KEY = bytes(32)
_START_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Race:
    """How a race ended.

    Args:
        granted: requests that were reserved.
        overspend: epsilon of everything reserved, by a fresh composition, above the grant; 0: none.
        wrongly_refused: refused requests that would still have fitted at the end.
        seconds: from the start line until the last was answered.
    """

    granted: int
    overspend: float
    wrongly_refused: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Answer:
    """Whether a request fitted, and when it was asked and answered, on the clock that all processes share."""

    fitted: bool
    asked: float
    told: float


def charges_of(reserver: int) -> list[Charge]:
    """What a reserver asks for: sizes differ, so that nobody's composition helps another."""
    mechanism = SampledGaussian(noise_multiplier=1.0, sample_rate=0.01)
    return [Charge(mechanism=mechanism, count=60 + 7 * (reserver % 13))]


def race(url: str, *, reservers: int = 64, epsilon: float = EPSILON, accounting: Accounting = TIGHT) -> Race:
    """Let ``reservers`` threads in 8 processes reserve at once; each has its own connection and ledger.

    Args:
        url: of an empty database, SQLite or PostgreSQL.
        reservers: how many, >= 1.
        epsilon: granted.
        accounting: how charges are composed; functions that can be imported by name.
    """
    with Workspace.open(url) as workspace:
        ledger = Ledger(workspace, key=_KEY, clock=SystemClock(), accounting=accounting)
        ledger.grant(DATASET, "all", "all", epsilon=epsilon, delta=DELTA)
        answers = _answers(url, reservers, accounting)
        assert len(answers) == reservers
        costs = Costs(accounting)
        granted = [number for number, answer in answers.items() if answer.fitted]
        # What the database says, not what the reservers were told.
        kept = {record.request_id for record in ledger.history(DATASET) if record.kind == "reserve"}
        assert kept == {str(number) for number in granted}
        assert ledger.verify() == []
        spent = [charge for number in granted for charge in charges_of(number)]
        refused = set(answers) - set(granted)
        return Race(
            granted=len(granted),
            overspend=max(0.0, costs.epsilon(spent, DELTA) - epsilon),
            wrongly_refused=sum(
                costs.epsilon([*spent, *charges_of(each)], DELTA) <= epsilon for each in refused
            ),
            seconds=max(each.told for each in answers.values())
            - min(each.asked for each in answers.values()),
        )


def overspend(url: str, reservers: int = 64) -> float:
    """Epsilon reserved beyond the grant when that many reserve at once; 0 as it must be."""
    return race(url, reservers=reservers).overspend


def _answers(url: str, reservers: int, accounting: Accounting) -> dict[int, _Answer]:
    """What each reserver was told."""
    context = multiprocessing.get_context("spawn")
    processes = min(PROCESSES, reservers)
    line, results = context.Barrier(processes), context.SimpleQueue()
    shares = [range(first, reservers, processes) for first in range(processes)]
    running = [
        context.Process(target=_reserve_share, args=(url, share, accounting, line, results), daemon=True)
        for share in shares
    ]
    for process in running:
        process.start()
    try:
        for process in running:
            process.join(600)
            if process.exitcode != 0:
                raise RuntimeError(f"a reserver's process ended with {process.exitcode}")
    finally:
        for process in running:
            process.kill()
    return {number: answer for _ in running for number, answer in results.get().items()}


def _reserve_share(url: str, share: Sequence[int], accounting: Accounting, line: Any, results: Any) -> None:
    ready = threading.Barrier(len(share), action=lambda: line.wait(_START_SECONDS))

    def reserve(number: int) -> _Answer:
        with Workspace.open(url) as workspace:
            ledger = Ledger(workspace, key=_KEY, clock=SystemClock(), accounting=accounting)
            ready.wait(_START_SECONDS)
            asked = time.perf_counter()
            try:
                ledger.reserve(str(number), DATASET, "default", ("all",), charges_of(number), what="a run")
            except Refused:
                return _Answer(False, asked, time.perf_counter())
            return _Answer(True, asked, time.perf_counter())

    with ThreadPoolExecutor(len(share)) as pool:
        results.put(dict(zip(share, pool.map(reserve, share), strict=True)))


if __name__ == "__main__":
    print(race(sys.argv[1]))
