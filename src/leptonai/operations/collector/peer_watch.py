"""Machines that do the same work, compared with each other: which one is not like the rest."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.operations.alarms import Alarm
from leptonai.operations.detect.counters import is_counter_name
from leptonai.operations.detect.peer_alarms import peer_alarm
from leptonai.operations.detect.peers import odd_ones
from leptonai.operations.series import NAME_LABEL
from leptonai.operations.store import Matcher, MetricsStore, Selected

WINDOW_SECONDS = 900.0
STEP_SECONDS = 15.0
LEAST_NODES = 4
"""Of three, two that agree and one that does not may as well be two of different trouble."""
LEAST_SHARE = 0.8
"""Of nodes that must have a metric for it to be compared."""
MOST_METRICS = 100
LOOKS_TO_BEGIN = 2
"""An odd machine is told when it was named so many times in a row: windows overlap, and chance passes."""
LOOKS_TO_END = 6
"""And is over when it was not named so many times in a row."""
FALSE_ALARMS_PER_WINDOW = 0.01
"""Before looks are joined; few peers cannot give surer evidence."""

Floats = NDArray[np.float64]


class PeerWatch:
    """Compares nodes whose names match a pattern, which do the same work.

    Args:
        pattern: of whole node names.

    Raises:
        InputError: the pattern is no regular expression.
    """

    def __init__(self, pattern: str) -> None:
        try:
            re.compile(pattern)
        except re.error as error:
            raise InputError(f"{pattern!r} is no regular expression: {error}") from None
        self._pattern = pattern
        self._named: Counter[str] = Counter()
        self._open: dict[str, tuple[Alarm, int]] = {}

    def look(self, store: MetricsStore, *, now_seconds: float) -> list[Alarm]:
        """Compare the last quarter of an hour."""
        end_ms = int(now_seconds // STEP_SECONDS * STEP_SECONDS * 1000) - 1
        start_ms = end_ms + 1 - int(WINDOW_SECONDS * 1000)
        rows = store.select(
            [Matcher("node", "=~", self._pattern)], start_ms, end_ms, step_ms=int(STEP_SECONDS * 1000)
        )
        nodes, metrics, values_MST = table_of(rows, start_ms=start_ms)
        named: dict[str, Alarm] = {}
        if len(nodes) >= LEAST_NODES and metrics:
            times = [(start_ms / 1000.0) + STEP_SECONDS * (1 + k) for k in range(values_MST.shape[2])]
            for odd in odd_ones(values_MST, false_alarms_per_window=FALSE_ALARMS_PER_WINDOW):
                named[nodes[odd.machine]] = peer_alarm(odd, machines=nodes, metrics=metrics, at_seconds=times)
        return [*self._begun(named), *self._ended(named, now_seconds)]

    def _begun(self, named: Mapping[str, Alarm]) -> Iterator[Alarm]:
        self._named = Counter({node: self._named[node] + 1 for node in named})
        for node, alarm in named.items():
            if node in self._open:
                self._open[node] = (self._open[node][0], 0)
            elif self._named[node] >= LOOKS_TO_BEGIN:
                self._open[node] = (alarm, 0)
                yield alarm

    def _ended(self, named: Mapping[str, Alarm], now_seconds: float) -> Iterator[Alarm]:
        for node, (alarm, missed) in list(self._open.items()):
            if node in named:
                continue
            if missed + 1 < LOOKS_TO_END:
                self._open[node] = (alarm, missed + 1)
                continue
            del self._open[node]
            words = f"node {node} is like its peers again"
            yield replace(alarm, at_seconds=now_seconds, since_seconds=now_seconds, message=words, over=True)


def table_of(rows: Iterator[Selected], *, start_ms: int) -> tuple[Sequence[str], Sequence[str], Floats]:
    """Nodes, metrics and values (nodes, metrics, steps) of what most of the nodes have; rates for counters."""
    num_steps = int(WINDOW_SECONDS / STEP_SECONDS)
    found: dict[tuple[tuple[str, str], ...], dict[str, Floats]] = {}
    for each in rows:
        key = tuple(pair for pair in each.series.labels if pair[0] not in ("node", "instance"))
        steps = (each.times_ms - start_ms) // int(STEP_SECONDS * 1000)
        inside = (steps >= 0) & (steps < num_steps)
        values = np.full(num_steps, np.nan)
        if is_counter_name(each.series.name):
            values[steps[inside]] = each.values[inside]
            grown = np.diff(values, prepend=np.nan) / STEP_SECONDS
            values = np.where(grown >= 0.0, grown, np.nan)
        else:
            with np.errstate(invalid="ignore", divide="ignore"):
                values[steps[inside]] = each.sums[inside] / each.counts[inside]
        found.setdefault(key, {})[each.series.get("node")] = values
    nodes = sorted({node for by_node in found.values() for node in by_node})
    kept = [
        key for key, by_node in found.items() if len(by_node) >= max(LEAST_NODES, LEAST_SHARE * len(nodes))
    ]
    kept = [key for key in kept if np.nanstd(np.stack(list(found[key].values()))) > 0.0][:MOST_METRICS]
    missing = np.full(num_steps, np.nan)
    table = [[found[key].get(node, missing) for key in kept] for node in nodes]
    return (
        nodes,
        [_name(key) for key in kept],
        np.array(table, dtype=np.float64).reshape(len(nodes), -1, num_steps),
    )


def _name(key: tuple[tuple[str, str], ...]) -> str:
    labels = ", ".join(value for name, value in key if name != NAME_LABEL)
    name = dict(key)[NAME_LABEL]
    return f"{name} ({labels})" if labels else name
