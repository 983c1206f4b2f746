"""The picture of a choice: names do not cover each other."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Annotation, Text

from leptonai.cli.hardware_plot import _dress, _name_points, draw_choice
from leptonai.compute.hardware.catalogue import load_catalogue
from leptonai.compute.hardware.offers import Choice, Offer, front_of
from leptonai.compute.prediction.layouts import Layout
from leptonai.core.errors import InputError

INSTANCE = load_catalogue().instance("p5.48xlarge")


def offer(place: int, *, price: float | None) -> Offer:
    seconds = 86400.0 * 1.15**place
    return Offer(
        instance=INSTANCE, num_nodes=place, layout=Layout(), step_seconds=1.0, total_seconds=seconds,
        low_seconds=seconds, high_seconds=seconds, price=price, energy_joules=0.0, memory_bytes=0.0,
    )  # fmt: skip


OFFERS = tuple(offer(place, price=1e5 * 0.97**place) for place in range(1, 13))
CHOICE = Choice(
    goal="price", best=OFFERS[-1], offers=OFFERS, front=front_of(OFFERS), rejected=(), num_tried=len(OFFERS)
)


def test_names_cover_neither_each_other_nor_a_point() -> None:
    figure = Figure(figsize=(9, 5), dpi=100)
    axes = figure.subplots()
    places = [(each.total_seconds / 86400, each.cost("price")) for each in OFFERS]
    axes.plot([across for across, _ in places], [up for _, up in places])
    _dress(axes, "USD")
    FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]
    _name_points(axes, list(CHOICE.front), CHOICE.best, list(OFFERS))
    names = [each for each in axes.texts if isinstance(each, Annotation)]
    boxes = [Text.get_window_extent(each) for each in names]
    assert len(boxes) >= 4
    assert any(f"{CHOICE.best.num_nodes} x" in each.get_text() for each in names)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    points = [axes.transData.transform(place) for place in places]
    assert not any(box.contains(*point) for box in boxes for point in points)


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml")])
def test_pictures_are_written(tmp_path: Path, name: str, start: bytes) -> None:
    draw_choice(CHOICE, tmp_path / name, deadline_seconds=2e5)
    assert (tmp_path / name).read_bytes().startswith(start)


def test_what_cannot_be_drawn_is_told(tmp_path: Path) -> None:
    bare = tuple(replace(each, price=None) for each in OFFERS)
    with pytest.raises(InputError, match="no machine set has a price"):
        draw_choice(replace(CHOICE, best=bare[0], offers=bare, front=bare[:1]), tmp_path / "a.png")
    with pytest.raises(InputError, match="cannot be written"):
        draw_choice(CHOICE, tmp_path / "none" / "a.png")
