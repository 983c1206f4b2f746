"""Where the parts of a drawn network lie: nodes as boxes of devices, switches in rows above them."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

from leptonai.compute.topology.graph import DEVICE, INNER, NIC, NO_NODE, SWITCH, Network

CELL = 14.0
"""Side of a device with the gap to the next, in pixels."""
CHARACTER = 6.2
"""Width that one letter of the labels takes, in pixels; a little more than their font's."""
LABEL_HEIGHT = 14.0
GAP = 14.0
ROW_GAP = 52.0
MARGIN = 20.0
_MOST_LABEL = 16
_DEVICES_IN_ROW = 8
_MOST_ON_CIRCLE = 24
_MOST_SWITCH_WIDTH = 1000.0


@dataclass(frozen=True, slots=True)
class Box:
    """A rectangle with a label; ``x`` and ``y`` are its upper left corner, in pixels."""

    x: float
    y: float
    width: float
    height: float
    label: str = ""
    title: str = ""


@dataclass(slots=True)
class Layout:
    """Where everything lies, in pixels."""

    width: float = 0.0
    height: float = 0.0
    nodes: list[Box] = field(default_factory=list)
    parts: dict[int, Box] = field(default_factory=dict)  # by vertex: devices, cards, inner switches
    switches: dict[int, Box] = field(default_factory=dict)

    def middle(self, vertex: int) -> tuple[float, float]:
        """Where links of a vertex end."""
        box = self.parts.get(vertex) or self.switches[vertex]
        return box.x + box.width / 2, box.y + box.height / 2


def lay_out(network: Network) -> Layout:
    """Places for all vertices: rows of switches, the farthest from the nodes on top, nodes below in a grid.

    Nodes that are joined directly lie on a circle while they are few, so that no link hides behind a box.
    """
    layout = Layout()
    free = [each for each in range(network.num_vertices) if network.nodes[each] == NO_NODE]
    rows = [len(network.devices_of(node)) for node in range(network.num_nodes)]
    width = _node_width(network, max(rows))
    height = LABEL_HEIGHT + CELL * math.ceil(max(rows) / _DEVICES_IN_ROW) + 22.0
    if not free and 2 < network.num_nodes <= _MOST_ON_CIRCLE:
        corners = _circle(network.num_nodes, width, height)
        top = left = 0.0
    else:
        # Broader below switches: fewer links then cross a row of nodes to reach the next.
        shape = 6.0 if free else 2.2
        columns = round(math.sqrt(network.num_nodes * shape * height / width))
        columns = _fitting_columns(network, max(1, min(network.num_nodes, columns, 32)))
        inside = columns * (width + GAP) - GAP
        page = max(inside, min(_MOST_SWITCH_WIDTH, _switch_width(network, free)))
        top, left = _lay_switches(network, layout, free, page), (page - inside) / 2
        step_x, step_y = width + GAP, height + (GAP if free else ROW_GAP)
        corners = [
            (place % columns * step_x, place // columns * step_y) for place in range(network.num_nodes)
        ]
    for node, (x, y) in enumerate(corners):
        _lay_node(network, layout, node, Box(MARGIN + left + x, MARGIN + top + y, width, height))
    boxes = [*layout.nodes, *layout.switches.values()]
    layout.width = max(box.x + box.width for box in boxes) + MARGIN
    layout.height = max(box.y + box.height for box in boxes) + MARGIN
    return layout


def short(label: str, most: int = _MOST_LABEL) -> str:
    """A label that fits: its beginning, and a dot for what was left out."""
    return label if len(label) <= most else label[: most - 1] + "…"


def _node_width(network: Network, devices: int) -> float:
    letters = max(len(short(name)) for name in network.node_names)
    return max(min(devices, _DEVICES_IN_ROW) * CELL, letters * CHARACTER) + 10.0


def _fitting_columns(network: Network, columns: int) -> int:
    """A number of columns near this one that leaves the last row full, if there is one."""
    count = network.num_nodes
    near = [each for each in range(max(1, columns * 2 // 3), columns * 3 // 2 + 1) if count % each == 0]
    return min(near, key=lambda each: abs(each - columns)) if near else columns


def _circle(count: int, width: float, height: float) -> list[tuple[float, float]]:
    chord = math.hypot(width, height) + GAP
    radius = chord / (2 * math.sin(math.pi / count))
    angles = [2 * math.pi * each / count - math.pi / 2 for each in range(count)]
    return [(radius * (1 + math.cos(each)), radius * (1 + math.sin(each))) for each in angles]


def _switch_width(network: Network, free: list[int]) -> float:
    """Width of the longest row of switches, if it is not wrapped."""
    tiers = _tiers(network, free)
    rows = [[each for each in free if tiers[each] == tier] for tier in set(tiers.values())]
    return max((len(row) * (_box_width(network, row) + GAP) - GAP for row in rows), default=0.0)


def _box_width(network: Network, row: list[int]) -> float:
    return max(len(short(network.names[each])) for each in row) * CHARACTER + 10.0


def _lay_switches(network: Network, layout: Layout, free: list[int], width: float) -> float:
    """Rows of switches, and the height they take."""
    y = 0.0
    tiers = _tiers(network, free)
    for tier in sorted(set(tiers.values()), reverse=True):
        row = [each for each in free if tiers[each] == tier]
        box_width = _box_width(network, row)
        columns = max(1, int((width + GAP) // (box_width + GAP)))
        for start in range(0, len(row), columns):
            chunk = row[start : start + columns]
            step = max(width, box_width) / len(chunk)
            for place, vertex in enumerate(chunk):
                x = MARGIN + step * (place + 0.5) - box_width / 2
                name = network.names[vertex]
                layout.switches[vertex] = Box(x, MARGIN + y, box_width, 20.0, short(name), name)
            y += 20.0 + GAP
        y += ROW_GAP - GAP
    return y


def _tiers(network: Network, free: list[int]) -> dict[int, int]:
    """How many links each vertex outside the nodes is away from the nearest node."""
    distance = np.where(network.nodes == NO_NODE, network.num_vertices, 0)
    for _ in range(len(free)):
        nearer = distance.copy()
        np.minimum.at(nearer, network.source, distance[network.target] + 1)
        if (nearer == distance).all():
            break
        distance = nearer
    return {each: int(distance[each]) for each in free}


def _lay_node(network: Network, layout: Layout, node: int, box: Box) -> None:
    name = network.node_names[node]
    layout.nodes.append(Box(box.x, box.y, box.width, box.height, short(name), name))
    inside = np.flatnonzero(network.nodes == node).tolist()
    left, right = box.x + 5.0, box.x + box.width - 5.0
    cards = [each for each in inside if network.kinds[each] in (NIC, SWITCH)]
    for place, vertex in enumerate(cards):
        x = left + (right - left) * (place + 0.5) / len(cards)
        side = min(7.0, (right - left) / len(cards) * 0.7)
        layout.parts[vertex] = Box(x - side / 2, box.y - side / 2, side, side, title=network.names[vertex])
    devices = [each for each in inside if network.kinds[each] == DEVICE]
    columns = min(len(devices), _DEVICES_IN_ROW)
    start = box.x + (box.width - columns * CELL) / 2
    for place, vertex in enumerate(devices):
        row, column = divmod(place, columns)
        corner = (start + column * CELL + 2.0, box.y + LABEL_HEIGHT + 4.0 + row * CELL)
        layout.parts[vertex] = Box(*corner, CELL - 4.0, CELL - 4.0, title=network.names[vertex])
    for vertex in (each for each in inside if network.kinds[each] == INNER):
        layout.parts[vertex] = Box(
            left, box.y + box.height - 9.0, right - left, 4.0, title=network.names[vertex]
        )
