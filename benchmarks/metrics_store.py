"""The metrics store: how fast it takes samples in, what they weigh, whether any is lost to ``kill -9``.

``LEPTON_DATA=... python -m benchmarks.metrics_store [--json] [--runs 5] [--only FIGURE ...] [--quick]``

What one run does is in :mod:`benchmarks.metrics_store_runs` and :mod:`benchmarks.metrics_store_kill`; how the hour
in ``$LEPTON_DATA/host_metrics/hour.npz`` was recorded, in :mod:`benchmarks.metrics_store_trace`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.contestants import own_python
from benchmarks.figures import Benchmark, Column, Figure, Options, run_benchmark
from benchmarks.harness import Contest, Contestant, Results
from benchmarks.progress import Progress, Run, median, number

INGEST, SIZE, KILL, QUERY = "remote write", "an hour of 300 series", "kill -9", "queries"
_WORDS = {INGEST: "ingest", SIZE: "size", KILL: "kill", QUERY: "query"}
OURS = "store"


def build(options: Options) -> Sequence[Contest]:
    """One contest for each kind of measurement; the store is alone in it."""
    return tuple(
        Contest(name=name, contestants=(_contestant(words, options.quick),)) for name, words in _WORDS.items()
    )


def _contestant(what: str, quick: bool) -> Contestant:
    def command(folder: Path, turn: int) -> list[str]:
        words = [str(own_python()), "-m", "benchmarks.metrics_store_runs", "--seed", str(turn)]
        words += ["--report", str(folder / "report.json"), "--what", what]
        return [*words, "--quick"] if quick else words

    one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return Contestant(name=OURS, command=command, read=_read, environment=one_thread, notes=_notes)


def _read(folder: Path) -> Progress:
    report = json.loads((folder / "report.json").read_text())
    return Progress(numbers={name: float(value) for name, value in report["numbers"].items()})


def _notes(folder: Path) -> list[str]:
    note = json.loads((folder / "report.json").read_text())["note"]
    return [note] if note else []


def ingest_rate(run: Run) -> float:
    """Samples a second from compressed request to durable log, and from there into chunks: wall time, one core."""
    return number(run, "samples") / (number(run, "seconds") + number(run, "cut_seconds"))


def acknowledge_rate(run: Run) -> float:
    """Samples a second until acknowledged; the cut into chunks comes later."""
    return number(run, "samples") / number(run, "seconds")


def _of(name: str) -> Callable[[Run], float]:
    return lambda run: number(run, name)


def _median(contest: str, value: Callable[[Run], float]) -> Callable[[Results], float]:
    return lambda results: median([value(run) for run in results.of(contest, OURS)])


def _sum(contest: str, name: str) -> Callable[[Results], float]:
    return lambda results: sum(number(run, name) for run in results.of(contest, OURS))


def _rows(step: str) -> Callable[[Run], float]:
    return lambda run: number(run, f"{step}_rows") / number(run, f"{step}_seconds")


FIGURES = (
    Figure(
        name="ingest_samples_per_second", contest=INGEST, contestants=(OURS,),
        value=_median(INGEST, ingest_rate), goal=150_000, better="higher", unit="samples",
        note="wall time on one core: snappy, protobuf, series, durable log, and the cut into chunks of all tiers",
    ),
    Figure(
        name="bytes_per_sample", contest=SIZE, contestants=(OURS,), value=_median(SIZE, _of("bytes_per_sample")),
        goal=2.0, better="lower", unit="bytes", note="every file of the directory: all tiers, indexes, labels",
    ),
    Figure(
        name="acknowledged_lost", contest=KILL, contestants=(OURS,), value=_sum(KILL, "lost"), goal=0,
        better="lower", unit="samples", note="of all runs together: missing, changed or doubled",
    ),
    Figure(
        name="raw_rows_per_second", contest=QUERY, contestants=(OURS,), value=_median(QUERY, _rows("raw")),
        goal=None, better="higher", unit="samples", note="every sample of an hour of 300 series, from chunks",
    ),
    Figure(
        name="panel_milliseconds", contest=QUERY, contestants=(OURS,),
        value=_median(QUERY, _of("panel_milliseconds")), goal=None, better="lower", unit="ms",
        note="the processor series but idle, an hour at steps of a minute",
    ),
)  # fmt: skip

COLUMNS = (
    Column(contest=INGEST, title="samples a second, cut included", of_run=ingest_rate, digits=0),
    Column(contest=INGEST, title="samples a second until acknowledged", of_run=acknowledge_rate, digits=0),
    Column(contest=INGEST, title="processor time until acknowledged, s", of_run=_of("cpu_seconds"), digits=2),
    Column(contest=INGEST, title="cut into chunks, s", of_run=_of("cut_seconds"), digits=2),
    Column(contest=INGEST, title="limit: forced writes a second", of_run=_of("forced_per_second"), digits=0),
    Column(contest=INGEST, title="limit: GB copied a second", of_run=_of("copied_gb_per_second"), digits=1),
    Column(contest=SIZE, title="bytes a sample, everything", of_run=_of("bytes_per_sample"), digits=3),
    Column(contest=SIZE, title="bytes a sample without coarser tiers", of_run=_of("raw_bytes_per_sample"), digits=3),
    Column(contest=SIZE, title="bytes a sample before the cut (log)", of_run=_of("waiting_bytes_per_sample")),
    Column(contest=SIZE, title="series that never change", of_run=_of("constant"), digits=0),
    Column(contest=KILL, title="kills", of_run=_of("kills"), digits=0),
    Column(contest=KILL, title="samples acknowledged", of_run=_of("acknowledged"), digits=0),
    Column(contest=KILL, title="lost, changed or doubled", of_run=_of("lost"), digits=0),
    Column(contest=QUERY, title="raw samples a second", of_run=_rows("raw"), digits=0),
    Column(contest=QUERY, title="rows a second at steps of 10 s", of_run=_rows("ten_seconds"), digits=0),
    Column(contest=QUERY, title="rows a second at steps of 60 s", of_run=_rows("minute"), digits=0),
    Column(contest=QUERY, title="one panel, ms", of_run=_of("panel_milliseconds"), digits=2),
)  # fmt: skip

PREFACE = (
    "**Data.** An hour of a real two-core Linux host under uneven load (builds, tests, trainings of others), one "
    "sample a second as it came, and a small NumPy training of four ranks in the recording process: 364 series of "
    "`/proc` counters, gauges and training values, none made up. Of them 300 are taken, those that change first, "
    "so that constant series left out make nothing look smaller.",
    "**Ingest.** 8 hosts of these 300 series, ten minutes, as Prometheus 2.42 sends them: snappy-compressed requests "
    "of 500 samples from 8 queues at once, each series always in the same queue. One process held to one core "
    "decompresses, decodes, finds the series, appends, and forces the log to the disk before each request returns; "
    "requests in flight share a forcing. HTTP is not in it. The figure counts the later cut into chunks too, with "
    "both coarser tiers, though no sender waits for it.",
    "**Size.** Every file of the directory after the hour was cut into chunks: raw, minute and hour tier, their "
    "indexes, the labels and the emptied log. Until the cut, a sample takes 20 bytes in the log.",
    "**Kill.** A process of three threads appends and cuts chunks all the while, is killed at a random instant of its "
    "first 0.4 s of work, and starts again on the same directory; at the end each sample that it ever acknowledged "
    "must be there, once, with its bits. A kill does not test the loss of power: for that, every acknowledgement "
    "waits for `fdatasync`, which a test of the package checks.",
    "**Physical limit.** One forced write a request and 20 bytes a sample; the disk's rate of forced writes and the "
    "memory's speed are in the table.",
)


def benchmark() -> Benchmark:
    """The theme."""
    return Benchmark(
        name="metrics_store",
        build=build,
        figures=FIGURES,
        columns=COLUMNS,
        preface=PREFACE,
        packages=("numpy", "zstandard", "cramjam"),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark with the words of the command line."""
    return run_benchmark(benchmark(), argv)


if __name__ == "__main__":
    sys.exit(main())
