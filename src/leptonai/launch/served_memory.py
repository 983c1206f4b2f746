"""What a served run shares between its processes: shards, bells, and who gets which descriptor."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from leptonai.launch.served_tables import ServedTables
from leptonai.training.optimizers import Optimizer
from leptonai.training.parameter_server.bell import Bell
from leptonai.training.parameter_server.kernels import initialise_states, num_states
from leptonai.training.parameter_server.layout import ShardLayout
from leptonai.training.parameter_server.memory import CHUNK_ELEMENTS, ShardMemory, ShardShape


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedMemory:
    """The shards' memory, held by the launcher so that a server's death loses nothing.

    Args:
        shards: one a server.
        server_bells: one a server.
        worker_bells: one a slot.
        job: 64 bits by which processes know they belong together.
        tables: the model's sparse tables, if it has any.
    """

    shards: tuple[ShardMemory, ...]
    server_bells: tuple[Bell, ...]
    worker_bells: tuple[Bell, ...]
    job: int
    tables: ServedTables = field(default_factory=ServedTables)

    @property
    def size_bytes(self) -> int:
        """Of all shards."""
        return sum(shard.size_bytes for shard in self.shards)

    def server_fds(self, server: int) -> list[int]:
        """What server number ``server`` inherits: its shard, its bell, every worker's bell, its tables."""
        return [
            self.shards[server].fd,
            self.server_bells[server].fd,
            *(bell.fd for bell in self.worker_bells),
            *self.tables.server_fds(server),
        ]

    def worker_fds(self) -> list[int]:
        """What every worker inherits: all shards, all servers' bells, all workers' bells, tables."""
        return [
            *(shard.fd for shard in self.shards),
            *(bell.fd for bell in self.server_bells),
            *(bell.fd for bell in self.worker_bells),
            *self.tables.worker_fds(),
        ]


def create_memory(
    stack: contextlib.ExitStack,
    layout: ShardLayout,
    optimizer: Optimizer,
    *,
    num_slots: int,
    journalled: bool,
    run_id: str,
    has_reads: bool = True,
) -> ServedMemory:
    """Reserve the memory of a run; ``stack`` gives it up.

    Raises:
        MemoryTooSmall: there is not enough; the message says how much is needed.
    """
    job = int.from_bytes(hashlib.sha256(run_id.encode()).digest()[:8])
    # The journal holds one chunk, so chunks longer than the shards would only take memory.
    chunk_elements = min(CHUNK_ELEMENTS, max(layout.lengths))
    shards = []
    for length in layout.lengths:
        shape = ShardShape(
            num_elements=length,
            num_states=num_states(optimizer),
            num_slots=num_slots,
            journalled=journalled,
            chunk_elements=chunk_elements,
            job=job,
        )
        memory = ShardMemory.create(shape)
        stack.callback(memory.close)
        initialise_states(optimizer, memory.states)
        shards.append(memory)
    return ServedMemory(
        shards=tuple(shards),
        server_bells=_bells(stack, len(shards)),
        worker_bells=_bells(stack, num_slots),
        job=job,
    )


def _bells(stack: contextlib.ExitStack, count: int) -> tuple[Bell, ...]:
    bells = tuple(Bell.create() for _ in range(count))
    for bell in bells:
        stack.callback(bell.close)
    return bells


@dataclass(frozen=True, slots=True, kw_only=True)
class InheritedMemory:
    """The same from a worker's side."""

    shards: tuple[ShardMemory, ...]
    server_bells: tuple[Bell, ...]
    worker_bells: tuple[Bell, ...]


def inherit_memory(fds: Sequence[int], *, num_servers: int, num_slots: int, job: int) -> InheritedMemory:
    """Map what :meth:`ServedMemory.worker_fds` passed on."""
    bells = [Bell(fd) for fd in fds[num_servers : 2 * num_servers + num_slots]]
    return InheritedMemory(
        shards=tuple(ShardMemory.attach(fd, job=job) for fd in fds[:num_servers]),
        server_bells=tuple(bells[:num_servers]),
        worker_bells=tuple(bells[num_servers:]),
    )
