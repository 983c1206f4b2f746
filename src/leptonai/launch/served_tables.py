"""Sparse tables in a served run: their memory, who inherits it, how a worker is joined to it, and their files."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leptonai.core.errors import Fault, InputError
from leptonai.training.parameter_server.bell import Bell
from leptonai.training.parameter_server.local_link import finish_offers
from leptonai.training.parameter_server.memory import Header, ShardMemory
from leptonai.training.parameter_server.memory import Slot as ShardSlot
from leptonai.training.parameter_server.tables.checkpoint import load_table, save_table, table_file_name
from leptonai.training.parameter_server.tables.link import LocalTableLink, RemoteTableLink, TableLink
from leptonai.training.parameter_server.tables.memory import Slot, TableMemory, TableShape
from leptonai.training.parameter_server.tables.service import TableService
from leptonai.training.parameter_server.tables.spec import Table, table_from_json
from leptonai.training.parameter_server.tables.storage import TableStorage

if TYPE_CHECKING:
    from leptonai.launch.engine import FrameworkName
    from leptonai.training.durable import Written
    from leptonai.training.parameter_server.link import Link
    from leptonai.training.parameter_server.tables.gradients import Embedding

# A dead worker's last pull may still be served, which takes milliseconds.
_QUIET_SECONDS = 60.0
TABLE_SERVICE = 1
"""Number of the tables' service where workers come over TCP."""


@dataclass(frozen=True, slots=True)
class ServedTables:
    """Memory of every table on every server: ``parts[table][server]``."""

    parts: tuple[tuple[TableMemory, ...], ...] = ()

    @property
    def all(self) -> list[TableMemory]:
        """Of all tables and servers."""
        return [memory for table in self.parts for memory in table]

    def server_fds(self, server: int) -> list[int]:
        """What one server inherits: its part of each table."""
        return [table[server].fd for table in self.parts]

    def worker_fds(self) -> list[int]:
        """What every worker inherits: all parts, table by table."""
        return [memory.fd for memory in self.all]


def create_tables(
    stack: contextlib.ExitStack,
    tables: Sequence[Mapping[str, Any]],
    *,
    num_servers: int,
    num_slots: int,
    job: int,
    resume_from: Path | None,
) -> ServedTables:
    """Memory for all tables, filled from a checkpoint if there is one; ``stack`` gives it up.

    Raises:
        InputError: a table of the checkpoint is another, or this machine cannot hold tables.
        Fault: a table's file is damaged, or there is no room for its rows.
    """
    parts = []
    for table in map(table_from_json, tables):
        memories = []
        for server in range(num_servers):
            shape = TableShape(
                table=table, server=server, num_servers=num_servers, num_slots=num_slots, job=job
            )
            memory = TableMemory.create(shape)
            stack.callback(memory.close)
            memories.append(memory)
            if resume_from is not None:  # no process serves yet, so being killed here harms nobody
                load_table(TableStorage(memory), saved_files(resume_from, table))
        parts.append(tuple(memories))
    return ServedTables(tuple(parts))


def saved_files(checkpoint: Path, table: Table) -> list[Path]:
    """The files of a table in a checkpoint, one for each server there was.

    Raises:
        Fault: there are none.
    """
    pattern = Path(table_file_name(table.name, 0))
    found = sorted((checkpoint / pattern.parent).glob(f"{table.name}.*.bin"))
    if not found:
        raise Fault(f"checkpoint {checkpoint} holds no table {table.name!r}")
    return found


def inherit_tables(
    fds: Sequence[int],
    tables: Sequence[Mapping[str, Any]],
    *,
    servers: Sequence[int],
    num_servers: int,
    num_slots: int,
    job: int,
) -> list[list[TableMemory]]:
    """Map the parts on ``servers`` of every table: for each table one memory a server, as the fds come."""
    rest = iter(fds)
    return [
        [
            TableMemory.attach(
                next(rest),
                TableShape(table=table, server=server, num_servers=num_servers, num_slots=num_slots, job=job),
            )
            for server in servers
        ]
        for table in map(table_from_json, tables)
    ]


def table_service(
    fds: Sequence[int],
    tables: Sequence[Mapping[str, Any]],
    memory: ShardMemory,
    bells: Sequence[Bell],
    *,
    server: int,
    num_servers: int,
    job: int,
) -> TableService:
    """All tables of one server process, what its predecessor left undone done."""
    mapped = inherit_tables(
        fds, tables, servers=[server], num_servers=num_servers, num_slots=memory.shape.num_slots, job=job
    )
    return TableService([TableStorage(part) for (part,) in mapped], bells=bells)


def table_links(
    parts: Sequence[Sequence[TableMemory]],
    links: Sequence[Link],
    slot: int,
    *,
    shards: Sequence[ShardMemory],
    server_bells: Sequence[Bell],
    worker_bell: Bell,
    over_tcp: bool,
) -> list[TableLink]:
    """One worker's link to each table: through its memory, or over the TCP links to the servers."""
    if over_tcp:
        from leptonai.launch.served_table_requests import exchanges

        asked = exchanges(links, TABLE_SERVICE)
        return [
            TableLink(
                memories[0].shape.table,
                [RemoteTableLink(memories[0].shape.table, index, ask, staged=True) for ask in asked],
            )
            for index, memories in enumerate(parts)
        ]

    def wake(server: int) -> None:
        if shards[server].header[Header.SLEEPING]:
            server_bells[server].ring()

    return [
        TableLink(
            memories[0].shape.table,
            [
                LocalTableLink(memory, slot, wake=functools.partial(wake, server), bell=worker_bell)
                for server, memory in enumerate(memories)
            ],
        )
        for memories in parts
    ]


def embeddings_of(framework: FrameworkName, model: Any) -> Sequence[Embedding]:
    """The sharded embeddings of a model."""
    if framework == "pytorch":
        from leptonai.training.pytorch.embedding import tables_of

        return tables_of(model)
    from leptonai.training.tensorflow import embedding

    return embedding.tables_of(model)


def tables_in(framework: FrameworkName, model: Any) -> list[Table]:
    """The tables of a model, each once, by name.

    Raises:
        InputError: two different tables have one name.
    """
    found: dict[str, Table] = {}
    for embedding in embeddings_of(framework, model):
        table = embedding.table
        if found.setdefault(table.name, table) != table:
            raise InputError(
                f"two different tables are named {table.name!r}", hint="give each table a name of its own"
            )
    return [found[name] for name in sorted(found)]


def save_tables(parts: Sequence[Sequence[TableMemory]], folder: Path) -> dict[str, Written]:
    """Write every table into a checkpoint's folder while no update is under way; what was written, by name.

    Raises:
        Fault: it could not be written, or a server is still busy.
    """
    written: dict[str, Written] = {}
    for memories in parts:
        for memory in memories:
            _await_quiet(memory)
            name = table_file_name(memory.shape.table.name, memory.shape.server)
            (folder / name).parent.mkdir(exist_ok=True)
            written[name] = save_table(TableStorage(memory, take_over=False), folder / name)
    return written


def _await_quiet(memory: TableMemory) -> None:
    deadline = time.monotonic() + _QUIET_SECONDS
    while (memory.slots[:, Slot.ASKED] > memory.slots[:, Slot.SERVED]).any():
        if time.monotonic() > deadline:
            raise Fault(f"table {memory.shape.table.name!r}: a server is still busy with a pull")
        time.sleep(0.001)


def finish_everywhere(
    shards: Sequence[ShardMemory], tables: Sequence[TableMemory], slot: int, sequence: int
) -> bool:
    """Whether a dead worker had offered this push anywhere; then it is offered on every shard and table.

    Sound because a worker prepares a push everywhere before it offers it anywhere.
    """
    if any(int(memory.slots[slot, Slot.OFFERED]) >= sequence for memory in tables):
        first = shards[0].slots
        first[slot, ShardSlot.OFFERED] = max(int(first[slot, ShardSlot.OFFERED]), sequence)
    if not finish_offers(list(shards), slot, sequence):
        return False
    for memory in tables:
        memory.slots[slot, Slot.OFFERED] = max(int(memory.slots[slot, Slot.OFFERED]), sequence)
    return True


def answered_everywhere(
    shards: Sequence[ShardMemory], tables: Sequence[TableMemory], slot: int, sequence: int
) -> bool:
    """Whether every shard and table has answered a push."""
    return all(int(memory.slots[slot, ShardSlot.ANSWERED]) >= sequence for memory in shards) and all(
        int(memory.slots[slot, Slot.ANSWERED]) >= sequence for memory in tables
    )
