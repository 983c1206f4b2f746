from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ElementTree

import pytest

from leptonai.compute.topology.draw_layout import short
from leptonai.compute.topology.draw_svg import draw_svg
from leptonai.compute.topology.graph import Network
from tests.compute.topology.nets import net, plain

SVG = "{http://www.w3.org/2000/svg}"
LETTER = 0.56  # width of a letter of the usual sans-serif fonts, in font sizes
CASES = {
    "eight devices": net("switch", 8), "eight in one node": net("switch", 1, devices=8),
    "rails of 64": net("rail_optimised", 8, devices=8), "tree of 64": net("fat_tree", 64, radix=16),
    "torus of 64": net("torus", 64), "ring of 64": plain("ring", 8, devices=8), "dragonfly": net("dragonfly", 36),
    "islands": net("islands", 16, devices=4, island=4), "rails of 256": net("rail_optimised", 32, devices=8),
}  # fmt: skip


class Picture:
    """Where everything of a drawing lies on its page."""

    def __init__(self, text: str) -> None:
        self.root = ElementTree.fromstring(text)
        self.page = [float(each) for each in self.root.attrib["viewBox"].split()]
        self.texts: list[tuple[float, float, float, float, str]] = []
        self.points: list[tuple[float, float]] = []
        self._walk(self.root, 0.0, 0.0)

    def _walk(self, element: ElementTree.Element, left: float, top: float) -> None:
        for each in element:
            if each.tag == f"{SVG}g":
                x, y = re.findall(r"[-\d.]+", each.attrib["transform"])
                self._walk(each, left + float(x), top + float(y))
            elif each.tag == f"{SVG}text":
                words = each.text or ""
                size = float(each.attrib["font-size"])
                width = LETTER * size * len(words)
                x = float(each.attrib["x"]) + left - (width / 2 if each.get("text-anchor") == "middle" else 0)
                y = float(each.attrib["y"]) + top
                self.texts.append((x, y - 0.8 * size, x + width, y + 0.2 * size, words))
            elif each.tag == f"{SVG}rect" and "x" in each.attrib:
                x, y, width, height = (float(each.attrib[name]) for name in ("x", "y", "width", "height"))
                self.points += [(x + left, y + top), (x + left + width, y + top + height)]
            elif each.tag == f"{SVG}path":
                numbers = [float(number) for number in re.findall(r"-?\d+\.\d+", each.attrib["d"])]
                ends = (numbers[0], numbers[1], numbers[-2], numbers[-1])
                self.points += [(ends[0] + left, ends[1] + top), (ends[2] + left, ends[3] + top)]


@pytest.mark.parametrize("network", CASES.values(), ids=CASES.keys())
def test_a_drawing_shows_every_vertex_within_its_page_and_no_text_over_another(network: Network) -> None:
    picture = Picture(draw_svg(network, title="a <cluster> & more", notes=("bisection 1 TB/s",)))
    titles = {title.text for title in picture.root.iter(f"{SVG}title")}
    assert {network.names[each] for each in range(network.num_vertices)} <= titles
    words = [text[4] for text in picture.texts]
    assert {short(name) for name in network.node_names} <= set(words)
    assert "bisection 1 TB/s" in words
    assert any("each way" in each for each in words)
    _, _, width, height = picture.page
    corners = [*picture.points, *((x, y) for text in picture.texts for x, y in (text[:2], text[2:4]))]
    assert all(-0.5 <= x <= width + 0.5 and -0.5 <= y <= height + 0.5 for x, y in corners)
    for one, other in itertools.combinations(picture.texts, 2):
        apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
        assert apart, (one, other)


def test_a_link_is_drawn_once_and_wider_when_it_is_faster() -> None:
    network = net("switch", 3, devices=2)
    paths = list(ElementTree.fromstring(draw_svg(network)).iter(f"{SVG}path"))
    assert len(paths) == network.num_links // 2
    widths = sorted({float(path.attrib["stroke-width"]) for path in paths})
    assert len(widths) == 2
    assert widths[0] < widths[1]
