"""The proof of private runs: whether audits let honest trainers pass, catch broken ones, and ledgers hold.

``python -m benchmarks.privacy_audit [--json] [--runs 1] [--only FIGURE ...] [--quick]``

Takes about five minutes and times nothing. The trainers: :mod:`benchmarks.privacy_audit_trainers`; how they are
audited: :mod:`benchmarks.privacy_audit_runs`; the race for a budget: :mod:`benchmarks.privacy_ledger_race`.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmarks.contestants import own_python
from benchmarks.figures import Benchmark, Column, Figure, Options, run_benchmark
from benchmarks.harness import Contest, Contestant, Results
from benchmarks.progress import Progress, Run, Unmeasured, median, number

HONEST, BROKEN, LEDGER = "honest audits", "broken audits", "64 reservers of one budget"
PASSES, BREAKS = "honest trainer", "broken trainers"
SQLITE, POSTGRESQL = "SQLite", "PostgreSQL"
PARTS: Mapping[str, tuple[str, str, int, int]] = {
    PASSES: (HONEST, "honest", 20, 3),
    BREAKS: (BROKEN, "broken", 5, 2),
    SQLITE: (LEDGER, "sqlite", 64, 8),
    POSTGRESQL: (LEDGER, "postgresql", 64, 8),
}
"""Contest, part of :mod:`benchmarks.privacy_audit_runs` or of :mod:`benchmarks.privacy_audit_races`, how many audits or
reservers, and how many in a quick run."""
CLAIMS = (1, 4, 8)


def build(options: Options) -> Sequence[Contest]:
    """The contests; quick ones small."""
    return tuple(
        Contest(
            name=contest,
            contestants=tuple(
                _contestant(name, quick=options.quick) for name in PARTS if PARTS[name][0] == contest
            ),
        )
        for contest in (HONEST, BROKEN, LEDGER)
    )


def _contestant(name: str, *, quick: bool) -> Contestant:
    contest, part, full, few = PARTS[name]
    module = "benchmarks.privacy_audit_races" if contest == LEDGER else "benchmarks.privacy_audit_runs"

    def command(folder: Path, turn: int) -> list[str]:
        words = [str(own_python()), "-m", module, part]
        words += ["--report", str(folder / "report.json"), "--count", str(few if quick else full)]
        if contest != LEDGER:
            words += ["--seed", str(turn), *(["--quick"] if quick else [])]
        return words

    # The server may run as another user, who could not enter a directory within a run's own.
    environment = {"OMP_NUM_THREADS": "1", **({"TMPDIR": tempfile.gettempdir()} if contest == LEDGER else {})}
    return Contestant(name=name, command=command, read=_read, notes=_notes, environment=environment)


def _read(folder: Path) -> Progress:
    report = json.loads((folder / "report.json").read_text())
    return Progress(
        numbers={name: float(value) for name, value in report.items() if isinstance(value, int | float)},
        samples={name: value for name, value in report.items() if name.startswith(("bound", "sure"))},
    )


def _notes(folder: Path) -> list[str]:
    """Which checks flagged whom."""
    report = json.loads((folder / "report.json").read_text())
    named = {name: ", ".join(checks) or "nothing" for name, checks in report.get("named", {}).items()}
    said = [f"{name}, flagged by {checks}" for name, checks in named.items()]
    return said + [f"an honest run was flagged by {name}" for name in report.get("flagged_by", ())]


# -- figures ------------------------------------------------------------------------------------------


def fewest(contest: str, contestant: str, name: str, results: Results) -> float:
    """The smallest count that any run reported."""
    return min(number(run, name) for run in results.of(contest, contestant))


def most(contest: str, contestant: str, name: str, results: Results) -> float:
    """The largest number that any run reported."""
    return max(number(run, name) for run in results.of(contest, contestant))


def middle(name: str, run: Run) -> float:
    """The median of a run's samples.

    Raises:
        Unmeasured: there are none.
    """
    return median(run.progress.samples.get(name, ()))


def lower_bound(claim: int, results: Results) -> float:
    """The median lower bound of honest runs with this claim."""
    found = [
        value
        for run in results.of(HONEST, PASSES)
        for value in run.progress.samples.get(f"bound_{claim}", ())
    ]
    if not found:
        raise Unmeasured(f"no run claimed epsilon {claim}")
    return median(found)


FIGURES = (
    Figure(
        name="honest_bound_within_claim", contest=HONEST, contestants=(PASSES,), goal=20.0, better="higher",
        unit="of 20 runs", value=partial(fewest, HONEST, PASSES, "within"),
    ),
    Figure(
        name="honest_runs_flagged", contest=HONEST, contestants=(PASSES,), goal=0.0, better="lower",
        unit="of 20 runs", value=partial(most, HONEST, PASSES, "flagged"),
    ),
    Figure(
        name="broken_trainers_flagged", contest=BROKEN, contestants=(BREAKS,), goal=5.0, better="higher",
        unit="of 5 trainers", value=partial(fewest, BROKEN, BREAKS, "flagged"),
    ),
    *(
        Figure(
            name=f"lower_bound_of_{claim}", contest=HONEST, contestants=(PASSES,), goal=None, better="higher",
            unit="epsilon", value=partial(lower_bound, claim), note=f"median of the runs that claim {claim}, 95 % sure",
        )
        for claim in CLAIMS
    ),
    *(
        Figure(
            name=f"ledger_overspend_{name.lower()}", contest=LEDGER, contestants=(name,), goal=0.0, better="lower",
            unit="epsilon", value=partial(most, LEDGER, name, "overspend"),
        )
        for name in (SQLITE, POSTGRESQL)
    ),
)  # fmt: skip


def _number(name: str, run: Run) -> float:
    return number(run, name)


COLUMNS = (
    *(
        Column(contest=contest, title=title, of_run=partial(_number, name), digits=0)
        for contest in (HONEST, BROKEN)
        for name, title in (("runs", "audits"), ("flagged", "audits that flagged"))
    ),
    *(
        Column(
            contest=HONEST, title=f"lower bound of epsilon {claim}, {word}", of_run=partial(middle, f"{name}_{claim}"),
            digits=2,
        )
        for claim in CLAIMS
        for name, word in (("bound", "95 %"), ("sure", "99.9 %"))
    ),
    Column(contest=LEDGER, title="reservations granted", of_run=partial(_number, "granted"), digits=0),
    Column(contest=LEDGER, title="wrongly refused", of_run=partial(_number, "wrongly_refused"), digits=0),
    Column(contest=LEDGER, title="overspend, epsilon", of_run=partial(_number, "overspend"), digits=6),
)  # fmt: skip

PREFACE = (
    "**Trainers.** A network of 2,372 weights on 3,000 made-up examples, a third of them wrongly labelled; 100 steps, "
    "each example in a step with probability 0.1, clip 1, noise calibrated to the claim at delta 1e-5, SGD. Clipping, "
    "noise and sampling are the engine's own. The broken trainers declare what the honest one declares.",
    "**Audits.** All checks of `lepton privacy audit`: a run with 2,000 gradient canaries, one with 500 mislabelled "
    "examples, a loss attack on 1,000 units, and the grey-box checks on neighbouring data. Each of the twenty honest "
    "runs has randomness of its own and claims epsilon 1, 4 or 8. A lower bound of one run stays below the claim by "
    "its nature: Steinke et al. 2023 report 1.8 of 4. A run is flagged at 99.9 % confidence a row.",
    "**Ledger.** 64 threads in 8 processes, each with a connection of its own, reserve at once from a budget that "
    "only some can have; overspend is what the granted reservations cost together above the budget.",
)


def benchmark() -> Benchmark:
    """The theme."""
    return Benchmark(
        name="privacy_audit", build=build, figures=FIGURES, columns=COLUMNS, num_runs=1, preface=PREFACE,
        packages=("torch", "numpy", "scipy"),
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark with the words of the command line."""
    return run_benchmark(benchmark(), argv)


if __name__ == "__main__":
    sys.exit(main())
