"""Keeping count of acknowledged updates, to be held against what the shards hold."""

from __future__ import annotations

from leptonai.launch.served_memory import ServedMemory
from leptonai.training.parameter_server.memory import Header
from leptonai.training.parameter_server.tables.memory import Header as TableHeader


class PushBooks:
    """How many updates were acknowledged to workers since the run began, and whether every shard and table has them."""

    def __init__(self, memory: ServedMemory) -> None:
        self._memory = memory
        self._at_first = self._versions()
        self._acknowledged = 0

    def open(self) -> None:
        """The first parameters are written: count from here."""
        self._at_first = self._versions()

    def applied(self) -> None:
        """An update was acknowledged by every shard."""
        self._acknowledged += 1

    def lost(self) -> int:
        """Acknowledged updates that the shard or table with the fewest does not hold."""
        pairs = zip(self._versions(), self._at_first, strict=True)
        held = min(version - first for version, first in pairs)
        return max(0, self._acknowledged - held)

    def _versions(self) -> list[int]:
        tables = [int(table.header[TableHeader.VERSION]) for table in self._memory.tables.all]
        return [int(shard.header[Header.VERSION]) for shard in self._memory.shards] + tables
