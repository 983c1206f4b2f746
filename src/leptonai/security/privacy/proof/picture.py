"""The picture of an audit: the claimed epsilon above what was measured, and the attacks below what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from leptonai.security.privacy.proof.audit import Audit
from leptonai.security.privacy.proof.membership import curve, most_true_positives

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURE_PIXELS = (1200, 520)
_PIXELS_PER_INCH = 100
_LEAST_SHARE = 1e-3  # logarithmic axes: attacks that are sure of a few people matter most
_CLAIMED, _MEASURED, _BROKEN = "#444444", "#1f6fb2", "#c62828"
_ATTACKS = ("#1f6fb2", "#e07b00")


def draw_audit(audit: Audit, path: Path, *, title: str) -> None:
    """Write a PNG of 1200 x 520 pixels.

    Args:
        audit: what was found.
        path: replaced if it exists.
        title: shown above, such as the run's name.

    Raises:
        OSError: the file cannot be written.
    """
    # Not pyplot: its global state would clash with a notebook that imports us, and with other threads.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = (pixels / _PIXELS_PER_INCH for pixels in PICTURE_PIXELS)
    figure = Figure(figsize=(width, height), dpi=_PIXELS_PER_INCH, facecolor="white", layout="constrained")
    FigureCanvasAgg(figure)
    rows = [row for row in audit.findings if row.verdict != "skipped"]
    verdict = f"{len(audit.flagged)} of {len(rows)} checks flagged" if audit.flagged else "nothing flagged"
    shown = title.replace("$", r"\$")  # no mathematics in names
    figure.suptitle(
        f"{shown}: {verdict}", fontsize=15, fontweight="bold", color=_BROKEN if audit.flagged else "black"
    )
    left, right = figure.subplots(1, 2)
    _draw_bounds(left, audit)
    _draw_attacks(right, audit)
    with path.open("wb") as file:
        figure.savefig(file, format="png")


def _draw_bounds(axes: Axes, audit: Audit) -> None:
    _dress(axes, f"Epsilon at delta {audit.delta:g}")
    names = ["claimed", *(f"at least\n({bound.confidence:.1%} sure)" for bound in audit.bounds)]
    values = [audit.epsilon, *(bound.epsilon for bound in audit.bounds)]
    colours = [_CLAIMED, *(_BROKEN if value > audit.epsilon else _MEASURED for value in values[1:])]
    bars = axes.bar(names, values, color=colours, width=0.55)
    axes.bar_label(bars, [f"{value:.2f}" for value in values], padding=3, fontsize=12)
    axes.axhline(audit.epsilon, color=_CLAIMED, linewidth=1.2, linestyle="--")
    axes.set_ylim(0, 1.15 * max(values))
    axes.set_ylabel("epsilon", fontsize=12)
    if audit.bounds:
        units = audit.bounds[0].guesses.num_units
        axes.set_xlabel(
            f"measured with {units:,} canaries in one run of {audit.num_steps:,} steps", fontsize=11
        )
    else:
        axes.set_xlabel("no canaries were put in", fontsize=11)


def _draw_attacks(axes: Axes, audit: Audit) -> None:
    _dress(axes, "Membership inference")
    false = np.logspace(np.log10(_LEAST_SHARE), 0, 400)
    most = most_true_positives(false, epsilon=audit.epsilon, delta=audit.delta)
    axes.fill_between(
        false, most, 1.0, color=_BROKEN, alpha=0.12, linewidth=0, label="not allowed by the claim"
    )
    axes.plot(false, most, color=_CLAIMED, linewidth=1.2, linestyle="--", label="most that is allowed")
    axes.plot(false, false, color="#bbbbbb", linewidth=1.0, label="guessing")
    for found, colour in zip(audit.attacks, _ATTACKS, strict=False):
        across, up = curve(found)
        axes.plot(across, up, color=colour, linewidth=2.0, label=f"{found.name}: area {found.area.value:.3f}")
    axes.set(xscale="log", yscale="log", xlim=(_LEAST_SHARE, 1), ylim=(_LEAST_SHARE, 1.02))
    axes.set_xlabel("others taken for members (share)", fontsize=12)
    axes.set_ylabel("members found (share)", fontsize=12)
    axes.legend(frameon=False, fontsize=10.5, loc="lower right")


def _dress(axes: Axes, title: str) -> None:
    axes.set_title(title, fontsize=13, loc="left")
    axes.tick_params(labelsize=11)
    axes.grid(True, axis="y", color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
