"""Which nodes have fallen silent, from what their agents say of themselves."""

from __future__ import annotations

from leptonai.operations.agent.silence import heard_again, silent_nodes
from leptonai.operations.alarms import Alarm

UP = "lepton_agent_up"
EXPECTED_GAP = "lepton_agent_expected_gap_seconds"


class NodeWatch:
    """Follows when each node was last heard of, by the collector's clock.

    >>> watch = NodeWatch()
    >>> watch.heard("a", up=1.0, now_seconds=0.0)
    >>> [alarm.kind for alarm in watch.look(now_seconds=60.0)], watch.look(now_seconds=61.0)
    (['node_silent'], [])
    >>> watch.heard("a", up=1.0, now_seconds=62.0)
    >>> [alarm.over for alarm in watch.look(now_seconds=62.0)]
    [True]
    """

    def __init__(self) -> None:
        self._seen: dict[str, float] = {}
        self._gaps: dict[str, float] = {}
        self._goodbyes: set[str] = set()
        self._silent: set[str] = set()

    @property
    def nodes(self) -> tuple[str, ...]:
        """All that were ever heard of."""
        return tuple(sorted(self._seen))

    def heard(self, node: str, *, up: float, now_seconds: float) -> None:
        """Something of a node arrived now; ``up`` is 0 when it said goodbye."""
        self._seen[node] = now_seconds
        (self._goodbyes.discard if up > 0.0 else self._goodbyes.add)(node)

    def expects(self, node: str, gap_seconds: float) -> None:
        """The longest time between two arrivals of a node while all is well."""
        self._gaps[node] = gap_seconds

    def look(self, *, now_seconds: float) -> list[Alarm]:
        """Alarms for those that have become silent, and ends for those heard of again."""
        alarms = {
            each.subject.name: each
            for each in silent_nodes(self._seen, now_seconds, self._gaps, said_goodbye=self._goodbyes)
        }
        back = heard_again(self._silent - alarms.keys(), self._seen, now_seconds)
        new = [alarm for node, alarm in alarms.items() if node not in self._silent]
        self._silent = set(alarms)
        return [*back, *new]
