"""The picture of a choice: price against time of every machine set, the front drawn as a line and named."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

    from leptonai.compute.hardware.offers import Choice, Offer

PICTURE_PIXELS = (1300, 800)
_PIXELS_PER_INCH = 100
_SECONDS_PER_DAY = 86400.0
_FRONT, _BEST, _LATE = "#222222", "#c62828", "#c62828"
_COLOURS = (
    "#1f6fb2", "#e07b00", "#2e8b57", "#8e44ad", "#b5651d", "#d6438a", "#5f6b73", "#a3a500", "#17a2b8", "#c0392b",
    "#34495e", "#7fb800", "#f4a261", "#6a4c93", "#00897b", "#9e9d24", "#795548", "#455a64",
)  # fmt: skip
_SAMPLES_OF_SEGMENT = 60
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# Where a label may stand around its point, in points: nearest first, and below the front, where no sets are, first.
_PLACES = tuple(
    (across * distance, up * distance)
    for distance in (9, 16, 26, 40, 58, 80)
    for across, up in (
        (-1, -0.9), (-1, 0.6), (1, 0.6), (1, -0.9), (0.1, 1.2), (0.1, -1.5), (-0.1, 1.2), (-0.1, -1.5),
    )
)  # fmt: skip


def draw_choice(found: Choice, path: Path, *, deadline_seconds: float | None = None) -> None:
    """Write a picture of 1300 x 800 pixels, logarithmic in both directions.

    Args:
        found: what to draw; sets without a price are left out.
        path: PNG or SVG by its ending; replaced if it exists.
        deadline_seconds: drawn as a line; None: there is none.

    Raises:
        InputError: no machine set has a price, or the file cannot be written.
    """
    # Not pyplot: its global state would clash with a notebook that imports us, and with other threads.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from leptonai.core.errors import InputError

    priced = [each for each in found.offers if each.price]
    if not priced:
        raise InputError("--plot: no machine set has a price, so there is nothing to draw against time")
    width, height = (pixels / _PIXELS_PER_INCH for pixels in PICTURE_PIXELS)
    figure = Figure(figsize=(width, height), dpi=_PIXELS_PER_INCH, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    _draw_sets(axes, priced)
    _draw_front(axes, [each for each in found.front if each.price], found.best)
    if deadline_seconds is not None:
        _draw_deadline(axes, deadline_seconds)
    _dress(axes, priced[0].instance.currency)
    _draw_legend(axes, priced)
    figure.canvas.draw()  # the layout must stand before labels can keep out of each other's way
    _name_points(axes, [each for each in found.front if each.price], found.best, priced)
    try:
        with path.open("wb") as file:
            figure.savefig(file, format=path.suffix.lower().removeprefix("."))
    except OSError as error:
        raise InputError(f"--plot: {path}: cannot be written: {error.strerror}") from error


def _draw_sets(axes: Axes, priced: list[Offer]) -> None:
    colours, markers = _colours(priced), _markers(priced)
    for each in priced:
        axes.scatter(
            [each.total_seconds / _SECONDS_PER_DAY], [each.cost("price")],
            color=colours[each.instance.accelerator.name], marker=markers[each.instance.cloud],
            s=26, alpha=0.75, linewidths=0, zorder=2,
        )  # fmt: skip


def _draw_legend(axes: Axes, priced: list[Offer]) -> None:
    """Colours are accelerators, markers are clouds."""
    from matplotlib.lines import Line2D

    def sign(name: str, colour: str, marker: str) -> Line2D:
        return Line2D([], [], color=colour, marker=marker, markersize=6, linestyle="none", label=name)

    signs = [sign(name, colour, "o") for name, colour in _colours(priced).items()]
    signs += [sign(name, "#777777", marker) for name, marker in _markers(priced).items()]
    axes.legend(handles=signs, frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _colours(priced: list[Offer]) -> dict[str, str]:
    names = sorted({each.instance.accelerator.name for each in priced})
    return {name: _COLOURS[place % len(_COLOURS)] for place, name in enumerate(names)}


def _markers(priced: list[Offer]) -> dict[str, str]:
    names = sorted({each.instance.cloud for each in priced})
    return {name: _MARKERS[place % len(_MARKERS)] for place, name in enumerate(names)}


def _draw_front(axes: Axes, front: list[Offer], best: Offer) -> None:
    across = [each.total_seconds / _SECONDS_PER_DAY for each in front]
    axes.plot(across, [each.cost("price") for each in front], color=_FRONT, linewidth=1.3, zorder=3)
    if best.price:
        axes.scatter(
            [best.total_seconds / _SECONDS_PER_DAY], [best.price], s=170, facecolors="none", edgecolors=_BEST,
            linewidths=2.0, zorder=4,
        )  # fmt: skip


def _draw_deadline(axes: Axes, deadline_seconds: float) -> None:
    at = deadline_seconds / _SECONDS_PER_DAY
    axes.axvline(at, color=_LATE, linewidth=1.1, linestyle=":", zorder=1)
    axes.text(at, 1.0, " deadline", color=_LATE, fontsize=10, va="top", transform=axes.get_xaxis_transform())


def _dress(axes: Axes, currency: str) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title(
        "Price against time of each machine set; the line joins those that no other beats", loc="left"
    )
    axes.set_xlabel("days", fontsize=12)
    axes.set_ylabel(f"price, {currency}", fontsize=12)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(_plain))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(True, which="major", color="#dddddd", linewidth=0.8)
    axes.grid(True, which="minor", color="#f0f0f0", linewidth=0.5)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.margins(0.08)


def _plain(value: float, _: Any) -> str:
    return f"{value:,.0f}" if value >= 1 else f"{value:g}"


def _name_points(axes: Axes, front: list[Offer], best: Offer, priced: list[Offer]) -> None:
    """Names beside points of the front, each where it hides neither a name nor a marked point; else none."""
    named = [best, *(each for each in front if each is not best)] if best.price else front
    to_pixels = axes.transData.transform
    points = [to_pixels(_position(each)) for each in priced]
    corners = [to_pixels(_position(each)) for each in front]
    for start, end in itertools.pairwise(corners):
        points += [start + (end - start) * share for share in np.linspace(0, 1, _SAMPLES_OF_SEGMENT)]
    inside = axes.get_window_extent()
    taken: list[Bbox] = []
    for offer in named:
        box = _name_point(axes, offer, inside=inside, taken=taken, points=points, is_best=offer is best)
        if box is not None:
            taken.append(box)


def _position(offer: Offer) -> tuple[float, float]:
    return offer.total_seconds / _SECONDS_PER_DAY, offer.cost("price")


def _name_point(
    axes: Axes, offer: Offer, *, inside: Bbox, taken: list[Bbox], points: list[Any], is_best: bool
) -> Bbox | None:
    from matplotlib.text import Text

    canvas: Any = axes.figure.canvas
    renderer = canvas.get_renderer()
    at = _position(offer)
    for across, up in _PLACES:
        label = axes.annotate(
            f"{offer.num_nodes} x {offer.instance.name}".replace("$", r"\$"), at, xytext=(across, up),
            textcoords="offset points", fontsize=9, fontweight="bold" if is_best else "normal",
            ha="left" if across > 0 else "right", va="center", color=_BEST if is_best else _FRONT, zorder=5,
            arrowprops={"arrowstyle": "-", "color": "#999999", "linewidth": 0.6, "shrinkB": 3},
        )  # fmt: skip
        # Of the words alone: an annotation's own extent takes in its leader, which may cross other things.
        label.update_positions(renderer)
        box = Text.get_window_extent(label, renderer).padded(3.0)
        free = not any(box.overlaps(other) for other in taken) and not any(
            box.contains(*each) for each in points
        )
        if (
            free
            and inside.x0 <= box.x0
            and box.x1 <= inside.x1
            and inside.y0 <= box.y0
            and box.y1 <= inside.y1
        ):
            return box
        label.remove()
    return None
