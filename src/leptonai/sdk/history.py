"""What ``PyTorch.fit`` returns: the metrics of each epoch, and their curve."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(kw_only=True)
class History:
    """The metrics of a run by name, one value an epoch, as in Keras's ``History``.

    Args:
        history: ``loss`` and, with validation data, ``val_loss`` and the metrics as ``val_...``.
        epoch: 0-based numbers of the epochs.
        run_dir: where everything about the run is kept; None before it ran.
    """

    history: dict[str, list[float]] = field(default_factory=dict)
    epoch: list[int] = field(default_factory=list)
    run_dir: Path | None = None

    def add(self, epoch: int, metrics: dict[str, float]) -> None:
        """Take up one finished epoch."""
        self.epoch.append(epoch)
        for name, value in metrics.items():
            self.history.setdefault(name, []).append(value)

    def curve(self) -> Figure:
        """A figure with the losses on the left and the other metrics, if any, on the right."""
        from matplotlib.figure import Figure

        losses = {name: values for name, values in self.history.items() if name in ("loss", "val_loss")}
        others = {name: values for name, values in self.history.items() if name not in losses}
        panels = [("loss", losses)] + ([("metrics", others)] if others else [])
        figure = Figure(figsize=(5.0 * len(panels), 3.5), layout="constrained")
        for axes, (title, series) in zip(
            figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True
        ):
            for name, values in series.items():
                axes.plot([epoch + 1 for epoch in self.epoch[-len(values) :]], values, marker="o", label=name)
            axes.set_title(title)
            axes.set_xlabel("epoch")
            axes.grid(True, alpha=0.3)
            axes.legend(frameon=False)
        return figure
