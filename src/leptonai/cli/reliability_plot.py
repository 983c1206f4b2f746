"""Pictures of forecasts: whether chances held, and the lives of a fleet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from leptonai.core.errors import InputError
from leptonai.operations.predict.calibrated import Reliability
from leptonai.operations.predict.fleet import Fleet
from leptonai.operations.predict.history import History

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLOURS = ("#1f6fb2", "#e07b00", "#2e8b57", "#8e44ad", "#b5651d", "#d6438a")
_LEAST, _LARGEST = 18.0, 260.0


def draw_reliability(found: Sequence[Reliability], words: Sequence[str], path: Path) -> None:
    """Chances told against what happened, a colour a horizon; the larger a dot, the more failures stand behind it.

    Raises:
        InputError: the file cannot be written, or its ending is neither .png nor .svg.
    """
    figure = _figure(7.2, 6.4)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#999999", linestyle="--", linewidth=1, label="as told")
    for number, (each, word) in enumerate(zip(found, words, strict=True)):
        told = [one.told for one in each.bins]
        happened = [one.happened for one in each.bins]
        hits = np.array([one.weight * one.happened for one in each.bins])
        sizes = _LEAST + _LARGEST * hits / max(float(hits.max()), 1e-12)
        colour = _COLOURS[number % len(_COLOURS)]
        axes.plot(told, happened, color=colour, linewidth=1, alpha=0.5)
        axes.scatter(told, happened, s=sizes, color=colour, label=f"within {word}: off by {each.error:.4f}")
    axes.set_xlabel("chance told")
    axes.set_ylabel("share that failed")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.set_title("Units left out: what was told, and what happened", fontsize=11)
    legend = axes.legend(loc="upper left", frameon=False)
    for handle in legend.legend_handles[1:]:
        handle.set_sizes([50.0])  # type: ignore[union-attr]
    axes.grid(color="#eeeeee")
    _write(figure, path)


def draw_lives(history: History, found: Fleet, unit: str, path: Path) -> None:
    """The share still working by age: as counted (Kaplan-Meier), and the Weibull curve.

    Raises:
        InputError: there is no curve yet, or the file cannot be written.
    """
    if found.lives is None:
        raise InputError("--plot: fewer than two failures, so there is no curve to draw")
    lives = np.array([each.times_T[-1] - each.times_T[0] for each in history.units])
    failed = np.array([each.failed for each in history.units])
    ages = np.unique(lives)
    at_risk = np.array([(lives >= age).sum() for age in ages])
    deaths = np.array([((lives == age) & failed).sum() for age in ages])
    figure = _figure(8.4, 5.2)
    axes = figure.subplots()
    share = np.concatenate([[1.0], np.cumprod(1 - deaths / at_risk)])
    axes.step(
        np.concatenate([[0.0], ages]), share, where="post", color="#1f6fb2", label="as counted (Kaplan-Meier)"
    )
    line = np.linspace(0, float(ages[-1]), 200)
    curve = [found.lives.working(float(age)) for age in line]
    axes.plot(line, curve, color="#e07b00", label=f"Weibull curve, shape {found.lives.shape:.2f}")
    axes.set_ylim(0, 1.02)
    axes.set_xlim(left=0)
    axes.set_xlabel(f"age, {unit}")
    axes.set_ylabel("share still working")
    axes.legend(frameon=False)
    axes.grid(color="#eeeeee")
    _write(figure, path)


def _figure(width: float, height: float) -> Figure:
    # Not pyplot: its global state would clash with a notebook that imports us, and with other threads.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=110, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _write(figure: Figure, path: Path) -> None:
    ending = path.suffix.lower().removeprefix(".")
    if ending not in ("png", "svg"):
        raise InputError(f"--plot: {path}: expected a name that ends in .png or .svg")
    try:
        with path.open("wb") as file:
            figure.savefig(file, format=ending)
    except OSError as error:
        raise InputError(f"--plot: {path}: cannot be written: {error.strerror}") from error
