"""Clusters and designs as text of at most 80 columns."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console

from leptonai.cli.output import facts, say, table
from leptonai.core.units import format_rate, format_seconds

if TYPE_CHECKING:
    from leptonai.compute.cluster import Cluster
    from leptonai.compute.topology.bisection import Bisection
    from leptonai.compute.topology.graph import Network
    from leptonai.compute.topology.paths import AllPaths, Path

MOST_CHILDREN = 6
"""Equal lines of the tree that are shown before the rest becomes one line."""
_WIDTH = 78


def print_network(
    cluster: Cluster, network: Network, halves: Bisection, paths: AllPaths, console: Console
) -> None:
    """A summary, the tree of nodes below their switches, and a table of the links."""
    devices = [network.names[each] for each in network.devices]
    first, second = paths.worst()
    rows = {
        "cluster": cluster.name,
        "topology": cluster.topology or ("links" if cluster.links else "one node"),
        "devices": f"{len(devices)} in {network.num_nodes} node{'s' * (network.num_nodes != 1)}",
        "bisection": f"{format_rate(halves.bytes_per_second)} one way; {halves.how}",
    }
    if len(devices) > 1:
        rows["worst path"] = (
            f"{devices[first]} to {devices[second]}: {format_rate(float(paths.bandwidth[first, second]))}, "
            f"{format_seconds(float(paths.latency[first, second]))}"
        )
    console.print(facts(rows))
    console.print()
    for line in tree_lines(network):
        say(console, line)
    console.print()
    _print_links(network, console)


def tree_lines(network: Network) -> Iterator[str]:
    """The network as a tree: top switches, what hangs below each, nodes with their devices.

    Where a vertex hangs below several, it stands below the first; nodes in a row that look alike are counted.
    """
    from leptonai.compute.topology.graph import DEVICE, NO_NODE

    free = [each for each in range(network.num_vertices) if network.nodes[each] == NO_NODE]
    switches_of: dict[int, list[int]] = defaultdict(list)  # by node
    for first, second in zip(network.source.tolist(), network.target.tolist(), strict=True):
        node = int(network.nodes[first])
        if node != NO_NODE and network.nodes[second] == NO_NODE and second not in switches_of[node]:
            switches_of[node].append(second)
    leaves: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for node in range(network.num_nodes):
        leaves[tuple(sorted(switches_of[node]))].append(node)
    counts = Counter(
        int(network.nodes[each]) for each in range(network.num_vertices) if network.kinds[each] == DEVICE
    )
    above = [each for each in free if all(each not in key for key in leaves)]
    if above:
        yield _clip(f"{_some([network.names[each] for each in above])}  ({len(above)} upper switches)")
    depth = "  " if above else ""
    shown = list(leaves.items())
    for switches, nodes in shown[:MOST_CHILDREN]:
        inner = depth
        if switches:
            yield _clip(f"{depth}{_some([network.names[each] for each in switches])}")
            inner = depth + "  "
        for node in nodes[:MOST_CHILDREN]:
            word = "device" if counts[node] == 1 else "devices"
            yield _clip(f"{inner}{network.node_names[node]}  {counts[node]} {word}")
        if len(nodes) > MOST_CHILDREN:
            yield f"{inner}and {len(nodes) - MOST_CHILDREN} more nodes"
    if len(shown) > MOST_CHILDREN:
        yield f"{depth}and {len(shown) - MOST_CHILDREN} more groups of nodes"


def print_path(network: Network, path: Path, words: str, console: Console) -> None:
    """One path: its figures, then each link."""
    say(
        console,
        f"{words}: {format_rate(path.bandwidth_bytes_per_second)}, {format_seconds(path.latency_seconds)}"
        if path.links
        else f"{words}: the same device",
    )
    for link in path.links:
        rate, latency = float(network.bandwidth[link]), float(network.latency[link])
        say(console, f"  {network.link_name(link)}  {format_rate(rate)}, {format_seconds(latency)}")


def print_designs(answer: dict[str, Any], console: Console) -> None:
    """A table of designs and a reason for each that cannot be had."""
    model = answer["model"]
    say(
        console, f"{answer['devices']} x {answer['accelerator']}, {answer['per_node']} to a node, for {model}"
    )
    console.print()
    numbers = ("switches", "network", "in all", "bisection", "per node", "step")
    rows = table("", "topology", *numbers, right=numbers)
    for column in rows.columns:
        column.no_wrap = True
    for each in answer["designs"]:
        rows.add_row(
            "best" if each["best"] else "no" if each["reason"] else "",
            each["topology"],
            str(each["switches"]),
            money(each["fabric_price"]),
            money(each["price"]),
            format_rate(each["bisection_bytes_per_second"]) + ("" if each["bisection_exact"] else "*"),
            format_rate(each["node_bytes_per_second"]),
            format_seconds(each["step_seconds"]) if each["step_seconds"] is not None else "-",
        )
    console.print(rows)
    if any(not each["bisection_exact"] for each in answer["designs"]):
        say(console, "* at most this")
    for each in answer["designs"]:
        if each["reason"]:
            console.print(f"no: {each['topology']}: {each['reason']}")
    console.print()
    console.print(answer["why"])
    console.print(f"Prices are {answer['prices']}", style="dim")


def money(value: float) -> str:
    """US dollars to three digits.

    >>> money(2_340_000), money(870)
    ('$2.34M', '$870')
    """
    for factor, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"${value / factor:.3g}{letter}"
    return f"${value:.3g}"


def _print_links(network: Network, console: Console) -> None:
    """Equal links in one line, by what they join."""
    found: Counter[tuple[str, float, float]] = Counter()
    for first, second, rate, latency in zip(
        network.source.tolist(), network.target.tolist(), network.bandwidth.tolist(), network.latency.tolist(),
        strict=True,
    ):  # fmt: skip
        ends = " - ".join(sorted((_kind(network, first), _kind(network, second))))
        found[ends, rate, latency] += 1
    rows = table("links", "number", "each way", "latency", right=("number", "each way", "latency"))
    for (ends, rate, latency), number in sorted(found.items(), key=lambda item: (-item[0][1], item[0][0])):
        rows.add_row(ends, str(number // 2), format_rate(rate), format_seconds(latency))
    console.print(rows)


def _kind(network: Network, vertex: int) -> str:
    return "switch in a node" if network.kinds[vertex] == "inner switch" else network.kinds[vertex]


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MOST_CHILDREN])
    return f"{shown} and {len(names) - MOST_CHILDREN} more" if len(names) > MOST_CHILDREN else shown


def _clip(line: str) -> str:
    return line if len(line) <= _WIDTH else line[: _WIDTH - 1] + "…"
