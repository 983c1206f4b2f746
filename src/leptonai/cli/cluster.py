"""``lepton cluster``: how machines are joined, and how they should be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from leptonai.cli.cluster_design import DESIGN_EXAMPLES, design
from leptonai.cli.cluster_probe import EXAMPLES as PROBE_EXAMPLES
from leptonai.cli.cluster_probe import probe
from leptonai.cli.options import JsonOption, naming, read_cluster_file
from leptonai.cli.output import out, print_json, say, shown_path
from leptonai.core.errors import InputError

if TYPE_CHECKING:
    from leptonai.compute.cluster import Cluster
    from leptonai.compute.topology.bisection import Bisection
    from leptonai.compute.topology.graph import Network
    from leptonai.compute.topology.paths import AllPaths

MOST_DRAWN_DEVICES = 2048

app = typer.Typer(help="Show, measure and design clusters.", no_args_is_help=True, rich_markup_mode="rich")

SHOW_EXAMPLES = """
[bold]Examples[/bold]

  lepton cluster show cluster.yaml

  lepton cluster show cluster.yaml --svg cluster.svg

  lepton cluster show cluster.yaml --between gpu-0 gpu-7/gpu3
"""


@app.command(epilog=SHOW_EXAMPLES)
def show(
    cluster: Annotated[
        Path, typer.Argument(metavar="CLUSTER", help="The cluster file (YAML).", show_default=False)
    ],
    svg: Annotated[
        Path | None, typer.Option("--svg", metavar="FILE", help="Also draw it there.", show_default=False)
    ] = None,
    between: Annotated[
        tuple[str, str] | None,
        typer.Option(
            "--between",
            metavar="A B",
            help="Show the best paths between two devices or nodes instead.",
            show_default=False,
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show how a cluster's devices are joined: links, paths, bisection; as text, JSON or a picture."""
    from leptonai.compute.topology.bisection import bisection
    from leptonai.compute.topology.of_cluster import from_cluster
    from leptonai.compute.topology.paths import all_paths

    found, _ = read_cluster_file(cluster)
    with naming(cluster):
        network = from_cluster(found)
    if between is not None:
        _show_between(network, between, as_json=as_json)
        return
    halves = bisection(network, kind=found.topology, fabric=found.fabric)
    if svg is not None:
        _draw(found, network, halves, svg)
    paths = all_paths(network)
    if as_json:
        print_json(network_to_json(found, network, halves, paths))
        return
    from leptonai.cli.cluster_view import print_network

    print_network(found, network, halves, paths, out())
    if svg is not None:
        say(out(), f"\ndrawn in {shown_path(svg)}")


app.command(epilog=DESIGN_EXAMPLES)(design)
app.command(epilog=PROBE_EXAMPLES)(probe)


def network_to_json(cluster: Cluster, network: Network, halves: Bisection, paths: AllPaths) -> dict[str, Any]:
    """What ``show`` knows, as JSON-ready values."""
    devices = [network.names[each] for each in network.devices]
    first, second = paths.worst()
    return {
        "name": cluster.name,
        "topology": cluster.topology,
        "nodes": list(network.node_names),
        "devices": devices,
        "vertices": [
            {"name": name, "kind": kind, "node": network.node_names[node] if node >= 0 else None}
            for name, kind, node in zip(network.names, network.kinds, network.nodes.tolist(), strict=True)
        ],
        "links": [
            {
                "from": network.names[network.source[link]],
                "to": network.names[network.target[link]],
                "bandwidth_bytes_per_second": float(network.bandwidth[link]),
                "latency_seconds": float(network.latency[link]),
            }
            for link in range(network.num_links)
        ],
        "bisection": {
            "bytes_per_second": halves.bytes_per_second,
            "exact": halves.exact,
            "how": halves.how,
        },
        "worst_path": {
            "between": [devices[first], devices[second]],
            "bandwidth_bytes_per_second": float(paths.bandwidth[first, second]),
            "latency_seconds": float(paths.latency[first, second]),
        },
    }


def _draw(cluster: Cluster, network: Network, halves: Bisection, path: Path) -> None:
    from leptonai.compute.topology.draw_svg import draw_svg
    from leptonai.core.disk import write_atomically
    from leptonai.core.units import format_rate

    if len(network.devices) > MOST_DRAWN_DEVICES:
        raise InputError(
            f"--svg: {len(network.devices)} devices are too many to draw, at most {MOST_DRAWN_DEVICES}",
            hint="draw a smaller cluster of the same shape",
        )
    if not path.parent.is_dir():
        raise InputError(f"--svg: there is no directory {path.parent}")
    note = f"bisection {format_rate(halves.bytes_per_second)} one way ({halves.how})"
    title = f"{cluster.name}: {len(network.devices)} devices in {network.num_nodes} nodes"
    write_atomically(path, draw_svg(network, title=title, notes=(note,)).encode())


def _show_between(network: Network, between: tuple[str, str], *, as_json: bool) -> None:
    from leptonai.cli.cluster_view import print_path
    from leptonai.compute.topology.paths import best_path

    first, second = (network.place(name) for name in between)
    found = {word: best_path(network, first, second, prefer=word) for word in ("widest", "fastest")}
    if as_json:
        print_json(
            {
                word: {
                    "path": [network.names[each] for each in path.vertices],
                    "bandwidth_bytes_per_second": path.bandwidth_bytes_per_second,
                    "latency_seconds": path.latency_seconds,
                }
                for word, path in found.items()
            }
        )
        return
    for word, path in found.items():
        print_path(network, path, word, out())
