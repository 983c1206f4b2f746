"""What is written down while events pass by: TensorBoard scalars and the picture of the curves.

Both formats are for people. The journal is the record; a recorder that fails must not end a run, so
:class:`Recorders` keeps the reason instead of raising it, for the launcher to tell.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from leptonai.core.events import Evaluated, Event, Resumed, StepDone
from leptonai.launch.curve import CurveBuilder, draw_picture

if TYPE_CHECKING:
    from leptonai.launch.event_file import EventFile


class Recorder(Protocol):
    """Takes events one by one; ``close`` finishes what was begun and may be called twice."""

    def __call__(self, event: Event) -> None: ...

    def close(self) -> None: ...


class TensorBoardRecorder:
    """Writes TensorBoard event files.

    Tags: ``train/loss``, ``train/learning_rate``, ``train/examples_per_second`` and ``evaluate/<metric>``.

    Args:
        directory: made when the first scalar arrives; a resumed run adds a file beside the older ones and has
            TensorBoard drop the steps that are taken again.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._writer: EventFile | None = None
        self._first_step_again: int | None = None

    def __call__(self, event: Event) -> None:
        match event:
            case Resumed():
                self._first_step_again = event.step + 1
            case StepDone() | Evaluated():
                self._open().write(scalars(event), step=event.step, at_seconds=event.at_seconds)
            case _:
                pass

    def close(self) -> None:
        """Write out what is buffered."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self) -> EventFile:
        if self._writer is None:
            from leptonai.launch.event_file import EventFile  # imports TensorBoard's formats

            self._writer = EventFile(self._directory, first_step_again=self._first_step_again)
        return self._writer


def scalars(event: StepDone | Evaluated) -> dict[str, float]:
    """The values of one event by TensorBoard tag.

    >>> scalars(Evaluated(at_seconds=0, step=5, epoch=1, metrics={"accuracy": 0.9}, examples=10, seconds=1.0))
    {'evaluate/accuracy': 0.9}
    """
    if isinstance(event, Evaluated):
        return {f"evaluate/{name}": value for name, value in event.metrics.items()}
    values = {"train/learning_rate": event.learning_rate}
    if event.loss is not None:
        values["train/loss"] = event.loss
    if event.seconds > 0:
        values["train/examples_per_second"] = event.examples / event.seconds
    return values


class CurveRecorder:
    """Draws the curves into one PNG when the run is over.

    Args:
        path: of the picture.
        title: shown above it.
        earlier: events of the run before a resume, so that the picture shows all of it.
    """

    def __init__(self, path: Path, *, title: str, earlier: Iterable[Event] = ()) -> None:
        self._path = path
        self._title = title
        self._builder = CurveBuilder()
        self._done = False
        for event in earlier:
            self._builder.add(event)

    def __call__(self, event: Event) -> None:
        self._builder.add(event)

    def close(self) -> None:
        """Draw the picture, unless no step was ever reported."""
        curves = self._builder.curves()
        if not self._done and curves.last_step > 0:
            draw_picture(curves, self._path, title=self._title)
        self._done = True


class Recorders:
    """Several recorders as one. One that fails is set aside, the reason is kept, and the others go on.

    Only ``OSError`` and ``ImportError`` (a full disk, a broken installation) are the world's doing; anything
    else is our own bug and is raised.
    """

    def __init__(self, recorders: Sequence[Recorder]) -> None:
        self._working = list(recorders)
        self.failures: list[str] = []

    def __call__(self, event: Event) -> None:
        for recorder in list(self._working):
            self._attempt(recorder, event)

    def close(self) -> None:
        """Close all; reasons of failures are in ``failures``."""
        for recorder in list(self._working):
            self._attempt(recorder, None)

    def _attempt(self, recorder: Recorder, event: Event | None) -> None:
        try:
            if event is None:
                recorder.close()
            else:
                recorder(event)
        except (OSError, ImportError) as error:
            self._working.remove(recorder)
            self.failures.append(f"{type(recorder).__name__} gave up: {error}")


def run_recorders(run_dir: Path, *, title: str, earlier: Iterable[Event] = ()) -> Recorders:
    """What every run writes for people: ``tensorboard/`` and ``curve.png`` in its directory."""
    return Recorders(
        [
            TensorBoardRecorder(run_dir / "tensorboard"),
            CurveRecorder(run_dir / "curve.png", title=title, earlier=earlier),
        ]
    )
