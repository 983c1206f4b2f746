"""A node that falls silent is itself an alarm: decided in the collector, from when it last heard of each node."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from leptonai.operations.alarms import Alarm, Evidence, Subject

MISSED_ARRIVALS = 3.0
"""Arrivals missed in a row before a node counts as silent: one may be lost to a restarted collector, two to a retry."""
LEAST_SECONDS = 10.0
"""A collector or network that stalls for less is no news of a node."""


def silent_after_seconds(interval_seconds: float) -> float:
    """How long a node may say nothing.

    >>> silent_after_seconds(5.0)
    15.0
    """
    return max(LEAST_SECONDS, MISSED_ARRIVALS * interval_seconds)


def silent_nodes(
    last_seen: Mapping[str, float],
    now: float,
    interval: float | Mapping[str, float],
    *,
    said_goodbye: Iterable[str] = (),
) -> tuple[Alarm, ...]:
    """Alarms ``node_silent`` for nodes not heard of for too long.

    Args:
        last_seen: by node, when something of it last arrived, by the collector's own clock (not the node's, which
            may be wrong), seconds since 1970.
        now: by the same clock.
        interval: the longest time between two arrivals while all is well, seconds; the value of
            ``lepton_agent_expected_gap_seconds``, for all nodes or by node.
        said_goodbye: nodes whose ``lepton_agent_up`` was last 0: stopped on purpose, not silent.

    >>> [alarm.message for alarm in silent_nodes({"a": 100.0, "b": 60.0}, 101.0, 5.0)]
    ['node b has said nothing for 41 s; 15 s are the limit']
    """
    stopped = set(said_goodbye)
    found = []
    for node, seen in sorted(last_seen.items()):
        expected = interval.get(node, LEAST_SECONDS) if isinstance(interval, Mapping) else interval
        limit = silent_after_seconds(expected)
        gap = now - seen
        if node in stopped or gap <= limit:
            continue
        found.append(
            Alarm(
                kind="node_silent",
                subject=Subject("node", node),
                severity="critical",
                at_seconds=now,
                since_seconds=min(now, seen),
                message=f"node {node} has said nothing for {gap:.0f} s; {limit:.0f} s are the limit",
                evidence=(
                    Evidence(
                        what="seconds since anything arrived",
                        value=gap,
                        expected=expected,
                        unit="s",
                        series=f'lepton_agent_up{{node="{node}"}}',
                    ),
                ),
                action="reboot_node",
            )
        )
    return tuple(found)


def heard_again(silent: Iterable[str], last_seen: Mapping[str, float], now: float) -> tuple[Alarm, ...]:
    """Alarms that close those of nodes heard of again; ``silent``: nodes with an open alarm.

    Give it the nodes that were silent and are no longer among :func:`silent_nodes`.
    """
    return tuple(
        Alarm(
            kind="node_silent",
            subject=Subject("node", node),
            severity="critical",
            at_seconds=now,
            since_seconds=min(now, last_seen.get(node, now)),
            message=f"node {node} is heard of again",
            over=True,
        )
        for node in sorted(silent)
    )
