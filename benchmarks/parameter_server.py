"""The parameter server's own speed: against copying, raw sockets, and the same pattern on other tools.

``python -m benchmarks.parameter_server [--json] [--runs 5] [--only FIGURE ...] [--quick]``

What one round is stands in :mod:`benchmarks.parameter_server_work`. Every contestant is a command of its own
that warms up, times its rounds one by one and reports them; a run's value is the median of its rounds.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.contestants import own_python
from benchmarks.figures import Benchmark, Column, Figure, Options, ratio_of_medians, run_benchmark
from benchmarks.harness import Contest, Contestant
from benchmarks.parameter_server_work import BATCH
from benchmarks.peers.environment import peers_python, pinned_versions
from benchmarks.progress import Run
from benchmarks.rounds import Size, contestant, rounds_per_second, seconds_per_round

LARGE = 25_000_000
"""100 MB of float32."""
SMALL = 33_000
ROWS = 20_000_000
QUICK = 200_000

HOST, FEW, TCP, ADAM, TABLE = "100 MB, one host", "33,000 parameters", "TCP", "Adam", "embedding"

MEMCPY = "memcpy"
VIEWS = "lepton, views, no journal"
JOURNAL = "lepton, views, journal"
IN_PLACE = "lepton, gradient made in place, journal"
IN_PLACE_BARE = "lepton, gradient made in place, no journal"
COPIES = "lepton, copies, journal"
RAY = "Ray actor"
RPC = "torch.distributed.rpc"
RAW = "raw socket loop"
FRAMED = "lepton, TCP"
TLS = "lepton, mutual TLS"
FUSED = "Adam(fused=True)"
SHARD = "lepton, shard"
BAG = "EmbeddingBag and SGD, one process"
TABLE_SHM = "lepton, shared memory"
TABLE_TCP = "lepton, table over TCP"

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TP_SOCKET_IFNAME": "lo"}
OURS = "benchmarks.parameter_server_ours"
TABLES = "benchmarks.parameter_server_tables"
WORK = "benchmarks.parameter_server_work"
PEERS = "benchmarks.peers"


def build(options: Options) -> Sequence[Contest]:
    """The contests; quick ones with little work."""
    many = 3 if options.quick else 200
    big = Size(elements=QUICK) if options.quick else Size(elements=LARGE)
    little = Size(elements=SMALL, warm=many // 4 + 1, rounds=many)
    table = Size(rows=QUICK if options.quick else ROWS, warm=many // 4 + 1, rounds=many)

    def one(
        name: str, module: str, part: str, size: Size, *, python: Callable[[], Path] = own_python
    ) -> Contestant:
        return contestant(name, module, part, size, python=python, environment=ENVIRONMENT)

    def host(size: Size) -> tuple[Contestant, ...]:
        return (
            one(JOURNAL, OURS, "journal", size),
            one(RAY, f"{PEERS}.ray_parameter_server", "", size, python=peers_python),
            one(RPC, f"{PEERS}.rpc_parameter_server", "", size),
        )

    return (
        Contest(
            name=HOST,
            contestants=(
                one(MEMCPY, WORK, "memcpy", big),
                one(VIEWS, OURS, "views", big),
                one(IN_PLACE, OURS, "in_place", big),
                one(IN_PLACE_BARE, OURS, "in_place_bare", big),
                one(COPIES, OURS, "copies", big),
                *host(big),
            ),
        ),
        Contest(name=FEW, contestants=host(little)),
        Contest(
            name=TCP,
            contestants=(
                one(RAW, WORK, "socket", big),
                one(FRAMED, OURS, "tcp", big),
                one(TLS, OURS, "tls", big),
            ),
        ),
        Contest(name=ADAM, contestants=(one(FUSED, WORK, "adam", big), one(SHARD, OURS, "adam", big))),
        Contest(
            name=TABLE,
            contestants=(
                one(BAG, WORK, "embedding", table),
                one(TABLE_SHM, TABLES, "shm", table),
                one(TABLE_TCP, TABLES, "tcp", table),
            ),
        ),
    )


def _faster(name: str, contest: str, ours: str, theirs: str, goal: float | None, *, note: str = "") -> Figure:
    """How many times as fast ours is as theirs at the same work."""
    return Figure(
        name=name, contest=contest, contestants=(ours, theirs), goal=goal, better="higher", note=note,
        value=ratio_of_medians(contest, ours, theirs, rounds_per_second),
    )  # fmt: skip


IN_PLACE_NOTE = "the gradient is made where the server reads it: no copy at all"

FIGURES = (
    _faster("views_vs_memcpy", HOST, VIEWS, MEMCPY, 0.8),
    _faster("journal_vs_memcpy", HOST, JOURNAL, MEMCPY, 0.6),
    _faster("in_place_vs_memcpy", HOST, IN_PLACE_BARE, MEMCPY, None, note=IN_PLACE_NOTE),
    _faster("in_place_journal_vs_memcpy", HOST, IN_PLACE, MEMCPY, None, note=IN_PLACE_NOTE),
    _faster("copies_vs_memcpy", HOST, COPIES, MEMCPY, None, note="journal; what asynchronous workers read"),
    _faster("tcp_vs_raw_socket", TCP, FRAMED, RAW, 1.0),
    Figure(
        name="tls_slowdown",
        contest=TCP,
        contestants=(TLS, FRAMED),
        value=ratio_of_medians(TCP, TLS, FRAMED, seconds_per_round),
        goal=3.5,
        better="lower",
    ),
    _faster("vs_ray_100mb", HOST, JOURNAL, RAY, 3.0),
    _faster("vs_ray_33k", FEW, JOURNAL, RAY, 20.0),
    _faster("vs_rpc_100mb", HOST, JOURNAL, RPC, 4.0),
    _faster("vs_rpc_33k", FEW, JOURNAL, RPC, 8.0),
    _faster("adam_vs_fused", ADAM, SHARD, FUSED, 0.95),
    _faster("embedding_vs_in_process", TABLE, TABLE_SHM, BAG, 0.9),
    _faster("embedding_tcp_vs_in_process", TABLE, TABLE_TCP, BAG, 0.3),
)


def _milliseconds(run: Run) -> float:
    return seconds_per_round(run) * 1e3


COLUMNS = (
    *(
        Column(contest=contest, title="ms a round", of_run=_milliseconds, digits=2)
        for contest in (HOST, FEW, TCP, ADAM)
    ),
    Column(
        contest=TABLE,
        title="rows pulled and pushed a second",
        of_run=lambda run: BATCH * rounds_per_second(run),
        digits=0,
    ),
)


def benchmark() -> Benchmark:
    """The theme."""
    return Benchmark(
        name="parameter_server",
        build=build,
        figures=FIGURES,
        columns=COLUMNS,
        packages=("torch", "numpy"),
        peer_versions={"ray": pinned_versions()["ray"]},
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark with the words of the command line."""
    return run_benchmark(benchmark(), argv)


if __name__ == "__main__":
    sys.exit(main())
