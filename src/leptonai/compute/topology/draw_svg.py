"""A network as an SVG picture, made of plain text: nodes with their devices, switches, links by bandwidth."""

from __future__ import annotations

import math
from xml.sax.saxutils import escape, quoteattr

import numpy as np

from leptonai.compute.topology.draw_layout import CHARACTER, MARGIN, Box, Layout, lay_out
from leptonai.compute.topology.graph import DEVICE, INNER, NIC, NO_NODE, Network
from leptonai.core.units import format_rate, format_seconds

# Slow to fast: the blue end is darker, so the order shows without colour too (ColorBrewer YlGnBu, without its palest).
COLOURS = ("#7fcdbb", "#41b6c4", "#1d91c0", "#225ea8", "#253494", "#081d58")
_FILLS = {DEVICE: "#f4a582", NIC: "#92c5de", INNER: "#4d4d4d"}
_LEGEND_ROW = 18.0
_TITLE_HEIGHT = 26.0
_MOST_LEGEND_ROWS = 8
_FAR, _BEND = 220.0, 0.06


def draw_svg(network: Network, *, title: str = "cluster", notes: tuple[str, ...] = ()) -> str:
    """The picture.

    Args:
        network: what to draw; readable up to a few hundred devices.
        title: above the picture.
        notes: lines below the legend, such as the bisection.

    Returns:
        SVG 1.1; every vertex has a ``title`` that viewers show under the pointer.
    """
    layout = lay_out(network)
    legend = _legend(network)
    lines = [text for _, _, text in legend] + list(notes)
    width = max(layout.width, max(len(text) for text in [title, *lines]) * (CHARACTER + 1) + 4 * MARGIN)
    height = layout.height + _TITLE_HEIGHT + _LEGEND_ROW * len(lines) + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
        f'width="{width:.0f}" height="{height:.0f}" font-family="Helvetica, Arial, sans-serif">',
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<text x="{MARGIN:.0f}" y="20" font-size="14" font-weight="bold">{escape(title)}</text>',
        f'<g transform="translate({(width - layout.width) / 2:.1f} {_TITLE_HEIGHT:.0f})">',
        *(_box(box, fill="#f7f7f7", stroke="#999999", label_at="top") for box in layout.nodes),
        *_links(network, layout),
        *(_box(box, fill=_FILLS[network.kinds[vertex]]) for vertex, box in layout.parts.items()),
        *(_box(box, fill="#e0e0e0", stroke="#4d4d4d", label_at="middle") for box in layout.switches.values()),
        "</g>",
    ]
    y = layout.height + _TITLE_HEIGHT + _LEGEND_ROW / 2
    for colour, thick, text in legend:
        parts.append(
            f'<line x1="{MARGIN:.0f}" y1="{y - 4:.1f}" x2="{MARGIN + 30:.0f}" y2="{y - 4:.1f}" stroke="{colour}" '
            f'stroke-width="{thick:.1f}"/>{_text(MARGIN + 38, y, text, anchor="start")}'
        )
        y += _LEGEND_ROW
    for text in notes:
        parts.append(_text(MARGIN, y, text, anchor="start"))
        y += _LEGEND_ROW
    return "\n".join([*parts, "</svg>"]) + "\n"


def _style(network: Network) -> tuple[list[str], list[float]]:
    """Colour and width of each link: by the place of its bandwidth among all, on a logarithmic scale."""
    rates = np.log(network.bandwidth)
    span = float(np.ptp(rates)) or 1.0
    heights = (rates - rates.min()) / span
    colours = [COLOURS[min(int(each * len(COLOURS)), len(COLOURS) - 1)] for each in heights]
    return colours, [0.8 + 2.2 * float(each) for each in heights]


def _links(network: Network, layout: Layout) -> list[str]:
    colours, widths = _style(network)
    faint = 0.8 if network.num_links < 400 else 0.45
    made = []
    for link in np.argsort(network.bandwidth, kind="stable").tolist():
        first, second = int(network.source[link]), int(network.target[link])
        if first > second and ((network.source == second) & (network.target == first)).any():
            continue  # drawn the other way
        (x1, y1), (x2, y2) = layout.middle(first), layout.middle(second)
        if network.kinds[second] == INNER and network.nodes[first] == network.nodes[second]:
            x2 = x1  # straight down to the bar that stands for the switch in the node
        # Long links between nodes bend, so that they do not hide behind the nodes they pass.
        direct = NO_NODE not in (network.nodes[first], network.nodes[second])
        way = "L"
        if direct and math.hypot(x2 - x1, y2 - y1) > _FAR:
            way = f"Q {(x1 + x2) / 2 + _BEND * (y2 - y1):.1f} {(y1 + y2) / 2 - _BEND * (x2 - x1):.1f}"
        made.append(
            f'<path d="M {x1:.1f} {y1:.1f} {way} {x2:.1f} {y2:.1f}" fill="none" stroke="{colours[link]}" '
            f'stroke-width="{widths[link]:.1f}" opacity="{faint}"/>'
        )
    return made


def _legend(network: Network) -> list[tuple[str, float, str]]:
    """Colour, width and words of each kind of link, fastest first."""
    colours, widths = _style(network)
    keys = list(zip(network.bandwidth.tolist(), network.latency.tolist(), strict=True))
    rows = []
    kinds = sorted(set(keys), reverse=True)
    for rate, latency in kinds[:_MOST_LEGEND_ROWS]:
        link = keys.index((rate, latency))
        count = keys.count((rate, latency))
        text = f"{format_rate(rate)} each way, {format_seconds(latency)}: {(count + 1) // 2} links"
        rows.append((colours[link], widths[link], text))
    if len(kinds) > _MOST_LEGEND_ROWS:
        rows.append(("none", 1.0, f"and {len(kinds) - _MOST_LEGEND_ROWS} slower kinds of links"))
    return rows


def _box(box: Box, *, fill: str, stroke: str = "none", label_at: str = "") -> str:
    title = f"<title>{escape(box.title)}</title>" if box.title else ""
    text = ""
    if label_at:
        y = box.y + (14.5 if label_at == "top" else box.height / 2 + 3.5)
        text = _text(box.x + box.width / 2, y, box.label, anchor="middle")
    return (
        f'<rect x="{box.x:.1f}" y="{box.y:.1f}" width="{box.width:.1f}" height="{box.height:.1f}" rx="2" '
        f"fill={quoteattr(fill)} stroke={quoteattr(stroke)}>{title}</rect>{text}"
    )


def _text(x: float, y: float, words: str, *, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="11" text-anchor="{anchor}">{escape(words)}</text>'
