"""Learning curves: taken from a run's events as plain values, and drawn as a picture."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leptonai.core.events import Evaluated, Event, Resumed, RunStarted, StepDone

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Point = tuple[int, float]
"""A value after so many optimiser steps."""

PICTURE_PIXELS = (1200, 500)
_PIXELS_PER_INCH = 100
_COLOURS = ("#1f6fb4", "#d9541e", "#2d9a5f", "#8a4fbf", "#b8860b")
_LOG_SCALE_FROM = 20.0
_SMOOTH_FROM_POINTS = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Curves:
    """What a run learned, step by step.

    Args:
        steps_per_epoch: optimiser steps in one pass over the data, >= 1.
        loss: mean training loss per example, in order of steps.
        evaluated: each metric of the evaluation set (its ``loss`` too, where reported), in order of steps.
    """

    steps_per_epoch: int = 1
    loss: tuple[Point, ...] = ()
    evaluated: Mapping[str, tuple[Point, ...]] = field(default_factory=dict)

    @property
    def last_step(self) -> int:
        """The last step any curve knows; 0 when there is none."""
        return max((series[-1][0] for series in (self.loss, *self.evaluated.values()) if series), default=0)


class CurveBuilder:
    """Collects curves while events pass by. After a resume, steps that are taken again replace the old ones.

    >>> builder = CurveBuilder()
    >>> common = {"at_seconds": 0, "epoch": 1, "examples": 8, "seconds": 1, "learning_rate": 0.1}
    >>> builder.add(StepDone(step=1, loss=2.0, **common))
    >>> builder.add(StepDone(step=2, loss=1.5, **common))
    >>> builder.add(Resumed(at_seconds=0, step=1, path="checkpoints/step-1"))
    >>> builder.curves().loss
    ((1, 2.0),)
    """

    def __init__(self) -> None:
        self._steps_per_epoch = 1
        self._loss: list[Point] = []
        self._evaluated: dict[str, list[Point]] = {}

    def add(self, event: Event) -> None:
        """Take up one event; kinds without a value for a curve are passed over."""
        match event:
            case RunStarted():
                self._steps_per_epoch = max(1, event.steps_per_epoch)
                self._forget_after(event.first_step)
            case Resumed():
                self._forget_after(event.step)
            case StepDone():
                if event.loss is not None:
                    _append(self._loss, (event.step, event.loss))
            case Evaluated():
                for name, value in event.metrics.items():
                    _append(self._evaluated.setdefault(name, []), (event.step, value))
            case _:
                pass

    def curves(self) -> Curves:
        """The curves so far."""
        return Curves(
            steps_per_epoch=self._steps_per_epoch,
            loss=tuple(self._loss),
            evaluated={name: tuple(points) for name, points in self._evaluated.items() if points},
        )

    def _forget_after(self, step: int) -> None:
        for series in (self._loss, *self._evaluated.values()):
            series[:] = [point for point in series if point[0] <= step]


def curves_of(events: Iterable[Event]) -> Curves:
    """The curves of a whole journal."""
    builder = CurveBuilder()
    for event in events:
        builder.add(event)
    return builder.curves()


def spans_decades(values: Sequence[float]) -> bool:
    """Whether a logarithmic axis shows these values better: all positive, the largest far above the smallest.

    >>> spans_decades([2.3, 0.02]), spans_decades([2.3, 1.1]), spans_decades([2.3, 0.0])
    (True, False, False)
    """
    finite = [value for value in values if math.isfinite(value)]
    return bool(finite) and min(finite) > 0 and max(finite) / min(finite) >= _LOG_SCALE_FROM


def smoothed(values: Sequence[float], *, window: int) -> list[float]:
    """Mean over the ``window`` >= 1 values that surround each one, fewer at the ends.

    >>> smoothed([0.0, 3.0, 0.0], window=3)
    [1.5, 1.0, 1.5]
    """
    half = window // 2
    slices = [values[max(0, place - half) : place + half + 1] for place in range(len(values))]
    return [sum(part) / len(part) for part in slices]


def draw_picture(curves: Curves, path: Path, *, title: str) -> None:
    """Write a PNG of 1200 x 500 pixels: training loss on the left, evaluation metrics on the right.

    Args:
        curves: may be empty; the picture then says so.
        path: replaced if it exists.
        title: shown above both panels, such as the name of the task.

    Raises:
        OSError: the file cannot be written.
    """
    # Not pyplot: its global state would clash with a notebook that imports us, and with other threads.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = (pixels / _PIXELS_PER_INCH for pixels in PICTURE_PIXELS)
    figure = Figure(figsize=(width, height), dpi=_PIXELS_PER_INCH, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=15, fontweight="bold")
    metrics = {name: points for name, points in curves.evaluated.items() if name != "loss"}
    panels = figure.subplots(1, 2 if metrics else 1, squeeze=False)[0]
    _draw_loss(panels[0], curves)
    if metrics:
        _draw_metrics(panels[1], metrics, curves)
    with path.open("wb") as file:
        figure.savefig(file, format="png")


def _draw_loss(axes: Axes, curves: Curves) -> None:
    _dress(axes, "Loss", curves)
    if not curves.loss and "loss" not in curves.evaluated:
        axes.text(0.5, 0.5, "no steps reported", transform=axes.transAxes, ha="center", color="#777777")
        return
    if curves.loss:
        across, values = _columns(curves.loss, curves)
        noisy = len(values) >= _SMOOTH_FROM_POINTS
        label = "training"
        if noisy:
            axes.plot(across, values, color=_COLOURS[0], alpha=0.28, linewidth=0.9)
            values = smoothed(values, window=max(3, len(values) // 40 | 1))
            label = "training (smoothed)"
        axes.plot(across, values, color=_COLOURS[0], linewidth=2.0, label=label)
    if "loss" in curves.evaluated:
        across, values = _columns(curves.evaluated["loss"], curves)
        axes.plot(
            across, values, color=_COLOURS[1], linewidth=1.6, marker="o", markersize=4, label="evaluation"
        )
    everything = [value for _, value in (*curves.loss, *curves.evaluated.get("loss", ()))]
    if spans_decades(everything):
        axes.set_yscale("log")
    axes.legend(frameon=False, fontsize=11)


def _draw_metrics(axes: Axes, metrics: Mapping[str, tuple[Point, ...]], curves: Curves) -> None:
    _dress(axes, "Evaluation", curves)
    for place, (name, points) in enumerate(metrics.items()):
        across, values = _columns(points, curves)
        colour = _COLOURS[(place + 1) % len(_COLOURS)]
        label = f"{name}: {values[-1]:.4g} at the end"
        axes.plot(across, values, color=colour, linewidth=2.0, marker="o", markersize=4.5, label=label)
    axes.legend(frameon=False, fontsize=11, loc="best")


def _dress(axes: Axes, title: str, curves: Curves) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, fontsize=13, loc="left")
    axes.set_xlabel("epoch" if in_epochs(curves) else "step", fontsize=12)
    if along(curves.last_step, curves) >= 2:
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))
    axes.tick_params(labelsize=11)
    axes.grid(True, which="major", color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def in_epochs(curves: Curves) -> bool:
    """Whether the run is long enough that epochs, not steps, are the natural scale."""
    return curves.last_step >= curves.steps_per_epoch > 1


def along(step: int, curves: Curves) -> float:
    """Where ``step`` lies on the scale that :func:`in_epochs` chose."""
    return step / curves.steps_per_epoch if in_epochs(curves) else float(step)


def _columns(points: Sequence[Point], curves: Curves) -> tuple[list[float], list[float]]:
    return [along(step, curves) for step, _ in points], [value for _, value in points]


def _append(series: list[Any], point: Point) -> None:
    if math.isfinite(point[1]):
        series.append(point)
