"""Our sparse table in :mod:`benchmarks.parameter_server`: one worker and one server process.

``python -m benchmarks.parameter_server_tables shm|tcp --report FILE ...``
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.parameter_server_ours import JOB, TOKEN, Commands, in_process
from benchmarks.parameter_server_work import (
    BATCH,
    EMBEDDING_START,
    GRADIENT,
    LEARNING_RATE,
    WIDTH,
    WorkNotDone,
    batches,
)
from benchmarks.rounds import Rounds, read_words, time_rounds
from leptonai.training.parameter_server.bell import Bell
from leptonai.training.parameter_server.memory import APPLIED, Header, ShardMemory, ShardShape
from leptonai.training.parameter_server.server import serve
from leptonai.training.parameter_server.tables.link import LocalTableLink, RemoteTableLink, TableLink
from leptonai.training.parameter_server.tables.memory import TableMemory, TableShape
from leptonai.training.parameter_server.tables.service import TableService
from leptonai.training.parameter_server.tables.spec import RowSGD, Table
from leptonai.training.parameter_server.tables.storage import TableStorage

DEADLINE_SECONDS = 60.0


def in_one_host(asked: Rounds) -> None:
    """The worker reads rows from the table's memory, and pushes through it."""
    memory, shard = _memories(asked.rows)
    server_bell, worker_bell = Bell.create(), Bell.create()

    def wake() -> None:
        if shard.header[Header.SLEEPING]:
            server_bell.ring()

    with in_process(serve_table, memory, shard, server_bell, worker_bell, False):
        local = LocalTableLink(memory, 0, wake=wake, bell=worker_bell)
        pull_and_push(TableLink(memory.shape.table, [local]), asked)


def over_tcp(asked: Rounds) -> None:
    """The worker asks for rows and pushes over a loopback connection."""
    from leptonai.training.parameter_server.tcp_link import TcpLink

    memory, shard = _memories(asked.rows)
    with in_process(serve_table, memory, shard, Bell.create(), Bell.create(), True) as line:
        link = TcpLink([line.recv()], job=JOB, token=TOKEN, slot=0, num_elements=shard.shape.num_elements)
        remote = RemoteTableLink(
            memory.shape.table, 0, lambda parts: link.request(0, parts, deadline_seconds=DEADLINE_SECONDS)
        )
        pull_and_push(TableLink(memory.shape.table, [remote]), asked)
        link.close()


def pull_and_push(link: TableLink, asked: Rounds) -> None:
    """A round is a batch: its rows pulled, and a gradient for each pushed and applied."""
    ids = batches(asked.rows, asked.warm + asked.rounds)
    above = np.full((BATCH, WIDTH), GRADIENT, np.float32)
    rows = np.empty((BATCH, WIDTH), np.float32)
    sequence = 0

    def round_() -> None:
        nonlocal sequence
        batch = ids[sequence]
        sequence += 1
        link.pull(batch, out=rows)
        link.push(batch, above, sequence=sequence)
        (answer,) = link.answer(sequence)
        assert answer.verdict == APPLIED

    time_rounds(round_, asked)
    _check(link, ids)


def _check(link: TableLink, ids: Sequence[Any]) -> None:
    """Every row named in the last batch has had each of its gradients once."""
    everything = np.concatenate(ids)
    names, counts = np.unique(everything, return_counts=True)
    wanted = EMBEDDING_START - LEARNING_RATE * GRADIENT * counts[np.searchsorted(names, ids[-1])]
    found = link.pull(ids[-1])
    if not np.allclose(found, wanted[:, None], rtol=0.0, atol=1e-6):
        raise WorkNotDone("rows of the last batch are not what the rounds must have made of them")


def serve_table(
    memory: TableMemory,
    shard: ShardMemory,
    server_bell: Bell,
    worker_bell: Bell,
    tcp: bool,
    line: Any,
) -> None:
    """The server process: the loop that real ones run."""
    tables = TableService([TableStorage(memory)], bells=[worker_bell])
    if tcp:
        from leptonai.training.parameter_server.tcp_server import TcpService

        service = TcpService(
            shard, job=JOB, token=TOKEN, server_bell=server_bell, worker_bells=[worker_bell],
            services={0: tables.handle_request},
        )  # fmt: skip
        line.send(service.address)
    serve(shard, server_bell, [tables], Commands(line), lambda command: False)
    if tcp:
        service.close()


def _memories(rows: int) -> tuple[TableMemory, ShardMemory]:
    """A table in which every row exists, as in the peer's, and a shard of nothing beside it."""
    table = Table(name="items", width=WIDTH, num_rows=rows, rule=RowSGD(lr=LEARNING_RATE))
    memory = TableMemory.create(TableShape(table=table, num_slots=1))
    memory.rows[:] = EMBEDDING_START
    memory.touched[:] = 1
    shard = ShardMemory.create(
        ShardShape(num_elements=16, num_states=0, num_slots=1, journalled=False, has_reads=False)
    )
    return memory, shard


PARTS: dict[str, Callable[[Rounds], None]] = {"shm": in_one_host, "tcp": over_tcp}


if __name__ == "__main__":
    asked_for = read_words(tuple(PARTS))
    PARTS[asked_for.part](asked_for)
