"""What ``fit`` shows while it runs: a line for each epoch, with a bar in it where the output can be rewritten."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TextIO

from leptonai.core.errors import InputError
from leptonai.core.events import CheckpointFailed, Event, Notice, RunStarted, StepDone

_BAR_WIDTH = 20


class Display:
    """Shows events of a run.

    Args:
        out: where to write.
        epochs: number of the last epoch.
        first_epoch: 0-based number of the first one.
        bar: whether the last line may be rewritten as steps are done.
        quiet: only what a person must know.
    """

    def __init__(self, out: TextIO, *, epochs: int, first_epoch: int = 0, bar: bool, quiet: bool) -> None:
        self._out, self._epochs, self._epoch, self._bar, self.quiet = out, epochs, first_epoch, bar, quiet
        self._steps_per_epoch, self._first_step, self._seconds = 1, 0, 0.0
        self._width = 0

    def __call__(self, event: Event) -> None:
        match event:
            case RunStarted():
                self._steps_per_epoch = max(1, event.steps_per_epoch)
                if not self.quiet:
                    workers = f"{event.num_workers} worker{'s' if event.num_workers > 1 else ''}"
                    self.say(f"training on {workers}, run {event.run_id}")
            case StepDone():
                self._seconds += event.seconds
                self._show_step(event)
            case CheckpointFailed():
                self.say(f"warning: the checkpoint at step {event.step} could not be written: {event.reason}")
            case Notice() if not self.quiet:
                self.say(f"note: {event.message}")
            case _:
                pass

    def end_epoch(self, metrics: Mapping[str, float]) -> None:
        """Write the finished epoch's line."""
        self._epoch += 1
        if not self.quiet:
            shown = "  ".join(f"{name} {value:.4f}" for name, value in metrics.items())
            self.say(f"epoch {self._epoch}/{self._epochs}  {self._seconds:.1f} s  {shown}")
        self._seconds = 0.0

    def close(self) -> None:
        """Leave no half line behind."""
        if self._width:
            self._write("\r" + " " * self._width + "\r")
            self._width = 0

    def _show_step(self, event: StepDone) -> None:
        if self.quiet or not self._bar:
            return
        done = (event.step - 1) % self._steps_per_epoch + 1
        filled = _BAR_WIDTH * done // self._steps_per_epoch
        bar = "█" * filled + "░" * (_BAR_WIDTH - filled)
        speed = event.examples / max(event.seconds, 1e-9)
        text = f"epoch {self._epoch + 1}/{self._epochs} {bar} {done}/{self._steps_per_epoch}"
        loss = "" if event.loss is None else f"  loss {event.loss:.4f}"
        text += f"{loss}  {speed:,.0f} examples/s"
        self._write("\r" + text.ljust(self._width))
        self._width = len(text)

    def say(self, text: str) -> None:
        """Write a line of its own."""
        self._write(("\r" if self._width else "") + text.ljust(self._width) + "\n")
        self._width = 0

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


def display_for(verbose: object, *, epochs: int, first_epoch: int = 0) -> Display:
    """The display that Keras's ``verbose`` asks for: 0 nothing, 1 or "auto" a bar, 2 a line an epoch.

    Raises:
        InputError: another value.
    """
    if verbose not in (0, 1, 2, "auto", True, False):
        raise InputError(f"fit: verbose={verbose!r} is not known", hint='one of "auto", 0, 1, 2')
    can_rewrite = in_notebook() or sys.stdout.isatty()
    return Display(
        sys.stdout,
        epochs=epochs,
        first_epoch=first_epoch,
        bar=verbose != 2 and can_rewrite,
        quiet=not verbose,
    )


def in_notebook() -> bool:
    """Whether the caller runs in a notebook cell, where pictures can be shown."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and hasattr(shell, "kernel")


def show_curve(run_dir: Path) -> None:
    """Show the run's learning curve below the cell; nothing outside a notebook."""
    picture = run_dir / "curve.png"
    if in_notebook() and picture.is_file():
        # By name: IPython's functions carry no types.
        shown = import_module("IPython.display")
        shown.display(shown.Image(data=picture.read_bytes()))
