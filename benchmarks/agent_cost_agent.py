"""The agent's process with a run's gauges beside the node's sources, for ``agent_cost``.

``python -m benchmarks.agent_cost_agent GAUGES WORD ...``, words as of ``python -m leptonai.operations.agent``.
Imports nothing else, so that what is measured is the agent.
"""

from __future__ import annotations

import sys

from leptonai.operations.agent.__main__ import parse
from leptonai.operations.agent.process import run_agent_process
from leptonai.operations.agent.registry import Registry, RegistrySource
from leptonai.operations.agent.source import Reading, SeriesTable


class RunGauges:
    """A run's registry with a gauge for each of many ranks, all set anew each time they are read."""

    name = "run"
    interval_seconds = 0.0

    def __init__(self, table: SeriesTable, num_gauges: int) -> None:
        self._registry = Registry()
        self._source = RegistrySource(self._registry, table)
        self._labels = [{"rank": str(rank)} for rank in range(num_gauges)]
        self._turn = 0

    def read(self, out: list[Reading]) -> None:
        """Set and read them all."""
        self._turn += 1
        for rank, labels in enumerate(self._labels):
            seconds = 0.1 + (self._turn * 7919 + rank * 104_729) % 1009 * 1e-5
            self._registry.gauge("lepton_rank_compute_seconds", seconds, labels)
        self._source.read(out)

    def close(self) -> None:
        """Nothing stays open."""


def main() -> None:
    """Run until SIGTERM."""
    num_gauges = int(sys.argv[1])
    run_agent_process(parse(sys.argv[2:]), more=(lambda table: RunGauges(table, num_gauges),))


if __name__ == "__main__":
    main()
