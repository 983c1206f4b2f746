"""What the parts of a cluster cost, as stated assumptions from list prices."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import numpy as np

from leptonai.compute.topology.generators import DIRECT_KINDS
from leptonai.compute.topology.graph import NO_NODE, SWITCH, Network
from leptonai.core.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class Bill:
    """Parts of a network between nodes, and their price in US dollars.

    Args:
        switches: between nodes.
        cables: between nodes and switches.
        nics: network cards; a cable from node to node takes one at each end.
        price: of all these.
    """

    switches: int
    cables: int
    nics: int
    price: float


def bill(network: Network, kind: str, *, nics: int) -> Bill:
    """What the network between the nodes takes.

    Args:
        network: where.
        kind: the shape it was generated in.
        nics: cards of a node; of no matter where cables run from node to node.
    """
    parts = _parts()
    ends = (network.nodes[network.source], network.nodes[network.target])
    outside = (ends[0] != ends[1]) | (ends[0] == NO_NODE)
    cables = int(network.cables[outside].sum()) // 2
    switches = int(np.sum(np.array(network.kinds) == SWITCH))
    cards = 2 * cables if kind in DIRECT_KINDS else nics * network.num_nodes
    price = (
        switches * parts["switch"]["price"] + cables * parts["cable"]["price"] + cards * parts["nic"]["price"]
    )
    return Bill(switches=switches, cables=cables, nics=cards, price=float(price))


def server_price(accelerator: str, devices: int) -> float:
    """Of one node with its devices, without network cards; other numbers of devices cost in proportion.

    Raises:
        InputError: no price of such a server is known.
    """
    servers = _parts()["servers"]
    for name, entry in servers.items():
        if accelerator.lower().startswith(name):
            return float(entry["price"] / entry["devices"] * devices)
    raise InputError(
        f"no price of a server with {accelerator} is known",
        hint="give the price of one node by --server-price",
    )


def assumptions(server_price: float) -> str:
    """What the prices rest on, in one sentence; ``server_price`` is that of a node without network cards."""
    parts = _parts()
    return (
        f"assumptions: a server with its devices ${server_price:,.0f}, "
        f"a switch of {parts['switch']['ports']} ports ${parts['switch']['price']:,}, a cable with both "
        f"transceivers ${parts['cable']['price']:,}, a network card ${parts['nic']['price']:,} "
        f"({parts['sources'][parts['switch']['source']]['url']}); no power, space or staff"
    )


def switch_ports() -> int:
    """Ports of the priced switch."""
    return int(_parts()["switch"]["ports"])


@cache
def _parts() -> dict[str, Any]:
    text = resources.files("leptonai.compute.topology").joinpath("parts.json").read_text(encoding="utf-8")
    found: dict[str, Any] = json.loads(text)
    return found
