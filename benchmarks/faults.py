"""Training that survives faults: what twenty kills lose, how fast work goes on, what is left of the speed.

``python -m benchmarks.faults [--json] [--runs 1] [--only FIGURE ...] [--quick]``

Takes about six minutes. What each run does is in :mod:`benchmarks.faults_runs`, how a recovery is timed in
:mod:`benchmarks.killing`, what is played in virtual time in :mod:`benchmarks.goodput`.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

from benchmarks.contestants import own_python
from benchmarks.figures import Benchmark, Column, Figure, Options, run_benchmark
from benchmarks.goodput import (
    Fleet,
    Measured,
    best_restart_goodput,
    elastic_goodput,
    seconds_between_losses,
    simulate_restart,
)
from benchmarks.harness import Contest, Contestant, Results
from benchmarks.progress import Progress, Run, Unmeasured, median, number
from leptonai.training.parameter_server.consistency import Asp, Bsp, Consistency

KILLS, RECOVERY = "random kills", "recovery"
RANDOM = "workers and servers"
SERVERS = "server"
WORKERS = "PyTorch worker, warm spare"
COLD = "PyTorch worker, no spare"
KERAS = "TensorFlow worker, warm spare"
RESTART = "restart from a checkpoint"
PARTS: Mapping[str, tuple[str, int, int]] = {
    RANDOM: ("random", 20, 2),
    SERVERS: ("servers", 200, 2),
    WORKERS: ("workers", 100, 2),
    COLD: ("cold", 20, 1),
    KERAS: ("keras", 10, 1),
    RESTART: ("restart", 5, 1),
}
"""Part of :mod:`benchmarks.faults_runs`, how many kills, and how many in a quick run."""

KEPT_BY_RESTARTING = 0.27
PLAYED_SECONDS = 150.0
LOSSES_PLAYED = 20_000


def build(options: Options) -> Sequence[Contest]:
    """The contests; quick ones with a kill or two."""
    made = {name: _contestant(name, quick=options.quick) for name in PARTS}
    return (
        Contest(name=KILLS, contestants=(made[RANDOM],)),
        Contest(name=RECOVERY, contestants=tuple(made[name] for name in PARTS if name != RANDOM)),
    )


def _contestant(name: str, *, quick: bool) -> Contestant:
    part, full, few = PARTS[name]

    def command(folder: Path, turn: int) -> list[str]:
        words = [str(own_python()), "-m", "benchmarks.faults_runs", part]
        words += ["--report", str(folder / "report.json"), "--count", str(few if quick else full)]
        return [*words, "--seed", str(turn)]

    return Contestant(name=name, command=command, read=_read, environment={"OMP_NUM_THREADS": "1"})


def _read(folder: Path) -> Progress:
    report = json.loads((folder / "report.json").read_text())
    return Progress(
        numbers={name: float(value) for name, value in report.items() if not isinstance(value, list)},
        samples={name: value for name, value in report.items() if isinstance(value, list)},
    )


# -- readings -----------------------------------------------------------------------------------------


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least ``share`` of them do not exceed.

    >>> percentile([3.0, 1.0, 2.0], 0.99)
    3.0

    Raises:
        Unmeasured: there are none.
    """
    if not values:
        raise Unmeasured("nothing of this kind was measured")
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]


def of_samples(name: str, share: float, run: Run) -> float:
    """A percentile of what one run reported under ``name``.

    Raises:
        Unmeasured: it reported nothing.
    """
    return percentile(run.progress.samples.get(name, ()), share)


def pooled(name: str, contestant: str, results: Results) -> tuple[float, ...]:
    """What all runs of a contestant reported under ``name``."""
    found = (run.progress.samples.get(name, ()) for run in results.of(RECOVERY, contestant))
    return tuple(value for values in found for value in values)


def slowest_but_one_in_a_hundred(contestant: str, results: Results) -> float:
    """The 99th percentile of the seconds from a kill until work went on."""
    return percentile(pooled("working", contestant, results), 0.99)


def worst(name: str, results: Results) -> float:
    """The largest count that any run reported."""
    return max(number(run, name) for run in results.of(KILLS, RANDOM))


def measured(results: Results) -> Measured:
    """What the runs of this benchmark say, for those that are played in virtual time."""
    return Measured(
        checkpoint=median(pooled("checkpoint", RESTART, results)),
        restart=median(pooled("restart", RESTART, results)),
        server=pooled("working", SERVERS, results),
        worker_warm=pooled("working", WORKERS, results),
        worker_cold=pooled("working", COLD, results),
    )


def elastic(mode: Consistency, slow: bool, results: Results) -> float:
    """Goodput of an elastic run where restarting keeps 27 %; ``slow``: every recovery as long as a restart."""
    found = measured(results)
    between = seconds_between_losses(KEPT_BY_RESTARTING, found)
    if slow:
        long = (found.restart,)
        found = Measured(
            checkpoint=found.checkpoint,
            restart=found.restart,
            server=long,
            worker_warm=long,
            worker_cold=long,
        )
    return elastic_goodput(
        mode, fleet=Fleet(), measured=found, between=between, seconds=PLAYED_SECONDS, seed=0
    )


def restarting(results: Results) -> float:
    """What restarting keeps when it is played: a check of the formula that the rate was found by."""
    found = measured(results)
    between = seconds_between_losses(KEPT_BY_RESTARTING, found)
    interval = best_restart_goodput(between, found)[1]
    return simulate_restart(
        interval, between=between, checkpoint=found.checkpoint, restart=found.restart,
        losses=LOSSES_PLAYED, seed=0,
    )  # fmt: skip


def loss_rate(results: Results) -> float:
    """Seconds between losses at that rate."""
    return seconds_between_losses(KEPT_BY_RESTARTING, measured(results))


# -- figures ------------------------------------------------------------------------------------------


def _none(name: str, what: str, goal: float | None = 0.0) -> Figure:
    return Figure(
        name=name, contest=KILLS, contestants=(RANDOM,), goal=goal, better="lower", unit="of them",
        value=partial(worst, what),
    )  # fmt: skip


def _recovery(name: str, contestant: str, goal: float | None) -> Figure:
    return Figure(
        name=name, contest=RECOVERY, contestants=(contestant,), goal=goal, better="lower", unit="s",
        value=partial(slowest_but_one_in_a_hundred, contestant),
    )  # fmt: skip


def _played(
    name: str,
    value: Callable[[Results], float],
    goal: float | None = None,
    *,
    better: Literal["higher", "lower"] = "higher",
    unit: str = "share",
    note: str = "",
) -> Figure:
    return Figure(
        name=name, contest=RECOVERY, contestants=(SERVERS, WORKERS, COLD, RESTART), goal=goal, better=better,
        unit=unit, value=value, note=note,
    )  # fmt: skip


SLOW_NOTE = "were every recovery, of servers too, as long as a whole restart"

FIGURES = (
    _none("pushes_lost", "pushes_lost"),
    _none("samples_lost", "lost"),
    _none("samples_repeated", "repeated"),
    Figure(
        name="kills", contest=KILLS, contestants=(RANDOM,), goal=None, better="higher", unit="kills",
        value=lambda results: min(number(run, "kills") for run in results.of(KILLS, RANDOM)),
    ),
    _recovery("server_recovery_p99_seconds", SERVERS, 1.0),
    _recovery("worker_recovery_p99_seconds", WORKERS, 2.0),
    _recovery("worker_recovery_without_spare_p99_seconds", COLD, None),
    _recovery("tensorflow_worker_recovery_p99_seconds", KERAS, None),
    _played("goodput", partial(elastic, Bsp(), False), 0.88),
    _played("goodput_asp", partial(elastic, Asp(), False)),
    _played("goodput_slow_recovery", partial(elastic, Bsp(), True), note=SLOW_NOTE),
    _played("goodput_of_restarting", restarting, note="played; the rate was found by formula"),
    _played("seconds_between_losses", loss_rate, better="lower", unit="s"),
)  # fmt: skip


def _columns(name: str, title: str) -> tuple[Column, ...]:
    return tuple(
        Column(
            contest=RECOVERY, title=f"{title}, {word}, s", of_run=partial(of_samples, name, share), digits=3
        )
        for word, share in (("median", 0.5), ("p99", 0.99), ("longest", 1.0))
    )


def _count(names: Sequence[str], run: Run) -> float:
    return float(sum(len(run.progress.samples.get(name, ())) for name in names))


COLUMNS = (
    *(
        Column(contest=KILLS, title=title, of_run=lambda run, name=name: number(run, name), digits=0)  # type: ignore[misc]
        for name, title in (
            ("kills", "kills"), ("deaths", "deaths"), ("epochs", "epochs of 16,384 examples"),
            ("lost", "lost, by the weights"), ("repeated", "repeated, by the weights"),
            ("lost_by_books", "lost, by the books"), ("repeated_by_books", "repeated, by the books"),
        )
    ),
    Column(contest=RECOVERY, title="recoveries", of_run=partial(_count, ("working",)), digits=0),
    Column(
        contest=RECOVERY, title="kills when no spare was ready", of_run=partial(_count, ("not_warm",)), digits=0
    ),
    *_columns("serving", "kill to ready"),
    *_columns("working", "kill to first work"),
    *_columns("restart", "command to first step"),
    *_columns("checkpoint", "one checkpoint"),
)  # fmt: skip

PREFACE = (
    "**Twenty kills.** SIGKILL at random steps, up to 50 ms after them, of two workers (one spare) and two servers "
    "of an asynchronous run with the default journal. Every example adds one to two weights of its own, on "
    "different shards, in whole numbers that float32 keeps exactly: what was lost or repeated is read off the "
    "final weights, and held beside the run's own books. A push is lost if it was acknowledged and a shard's "
    "version does not count it.",
    "**Recovery.** Two workers, two servers, asynchronous, a step of 10 ms, memory shared; a listener in the "
    "launcher sends SIGKILL to servers (or workers) 0 and 1 in turn and stops its own clock. *Ready*: the launcher "
    "heard that the replacement serves or has joined. *First work*, which the figures are about: for a server, the "
    "first training step that ended after it served again (every step needs every shard); for a worker, the first "
    "push of its replacement that all servers acknowledged and the launcher counted, or the one after it. Kills of "
    "workers wait until the next spare ought to be ready; those that found none are counted apart.",
    "**Goodput.** Virtual time, 64 workers, 4 servers, 2 spares (ready again after a cold start), 0.1 s a step; "
    "losses are exponential and strike any process alike. The rate is that at which a synchronous run that restarts "
    "from its checkpoint keeps 27 %, by Daly's formula, with the checkpoint and restart times measured here (a "
    "model of 101,770 parameters: both are short, which favours it) and the best interval there is, Young's or "
    "better; a larger cluster does not prolong its restart here. The elastic run is dealt by the real coordinator, "
    "with recoveries drawn from those measured; a synchronous step that loses a member is begun anew. Not "
    "imagined: the loss of the launcher or of a whole machine, slow networks. `goodput` is the synchronous mode's.",
)


def benchmark() -> Benchmark:
    """The theme."""
    return Benchmark(
        name="faults", build=build, figures=FIGURES, columns=COLUMNS, num_runs=1, preface=PREFACE,
        packages=("torch", "tensorflow", "numpy"),
    )  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark with the words of the command line."""
    return run_benchmark(benchmark(), argv)


if __name__ == "__main__":
    sys.exit(main())
