"""Live progress of a run, fed by events alone: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.text import Text

from leptonai.cli.terminal_curve import short
from leptonai.core.events import (
    AlarmRaised,
    CheckpointDamaged,
    CheckpointFailed,
    Evaluated,
    Event,
    Notice,
    OrderTaken,
    PrivacySpent,
    Resumed,
    RunStarted,
    StepDone,
    WorkerFailed,
)

SECONDS_BETWEEN_LINES = 10.0
# Short steps are reported hundreds of times a second, and drawing would take time from the workers.
SECONDS_BETWEEN_DRAWINGS = 0.1
_NEWEST_SHARE = 0.3


@dataclass(slots=True)
class Pace:
    """How far the run is and how fast it goes; ``seconds_per_step`` leans towards recent steps."""

    total_steps: int = 0
    steps_per_epoch: int = 1
    step: int = 0
    loss: float | None = None
    examples_per_second: float = 0.0
    seconds_per_step: float = 0.0
    privacy: str = ""

    def add(self, event: Event) -> None:
        """Take up one event."""
        match event:
            case RunStarted():
                self.total_steps, self.steps_per_epoch = event.total_steps, max(1, event.steps_per_epoch)
                self.step = event.first_step
            case Resumed():
                self.step = event.step
            case StepDone():
                num_steps = max(1, event.step - self.step)
                share = _NEWEST_SHARE if self.seconds_per_step else 1.0
                self.seconds_per_step += share * (event.seconds / num_steps - self.seconds_per_step)
                self.examples_per_second = event.examples / event.seconds if event.seconds > 0 else 0.0
                self.step, self.loss = event.step, event.loss
            case PrivacySpent():
                limit = "" if event.limit is None else f"/{event.limit:g}"
                self.privacy = f"epsilon {event.epsilon:.3g}{limit}"
            case _:
                pass

    @property
    def seconds_left(self) -> float:
        """At the pace of the latest steps."""
        return max(0, self.total_steps - self.step) * self.seconds_per_step

    def describe(self) -> str:
        """Epoch, step, loss, speed and time left, short enough for one row beside a bar."""
        epochs, whole = self.step / self.steps_per_epoch, self.total_steps / self.steps_per_epoch
        words = [f"epoch {epochs:.1f}/{whole:.4g}", f"step {self.step}/{self.total_steps}"]
        if self.privacy:
            words.append(self.privacy)
        if self.loss is not None:
            words.append(f"loss {short(self.loss)}")
        if self.examples_per_second:
            words += [f"{self.examples_per_second:,.0f} ex/s", f"{duration(self.seconds_left)} left"]
        return "  ".join(words)


class TrainDisplay:
    """Shows events as they come; call :meth:`close` at the end, whatever happened.

    Args:
        console: where to show them, normally standard error.
        quiet: only what a person must know: warnings, not progress.
    """

    def __init__(self, console: Console, *, quiet: bool = False) -> None:
        self._console = console
        self._quiet = quiet
        self._pace = Pace()
        self._last_shown_seconds = float("-inf")
        self._bar = _bar(console) if console.is_terminal and not quiet else None
        self._task: TaskID | None = None
        self.run_id = ""
        """Of the run that began; empty before."""

    def __call__(self, event: Event) -> None:
        if isinstance(event, RunStarted):
            self.run_id = event.run_id
        self._pace.add(event)
        sentence = sentence_for(event)
        if sentence is not None:
            self._say(sentence)
        if self._quiet:
            return
        if isinstance(event, Evaluated):
            metrics = "  ".join(f"{name} {short(value)}" for name, value in event.metrics.items())
            self._say(Text(f"step {event.step}  evaluation: {metrics}"))
        if isinstance(event, RunStarted | StepDone | Resumed):
            self._show_pace(event)

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    def _say(self, sentence: Text) -> None:
        console = self._bar.console if self._bar is not None else self._console
        console.print(sentence, soft_wrap=True)

    def _show_pace(self, event: Event) -> None:
        between = SECONDS_BETWEEN_LINES if self._bar is None else SECONDS_BETWEEN_DRAWINGS
        is_last = self._pace.step == self._pace.total_steps
        if event.at_seconds - self._last_shown_seconds < between and not is_last:
            return
        if self._bar is not None:
            self._draw(self._bar)
        elif isinstance(event, StepDone):
            self._say(Text(self._pace.describe()))
        else:
            return
        self._last_shown_seconds = event.at_seconds

    def _draw(self, bar: Progress) -> None:
        if self._task is None:
            bar.start()
            self._task = bar.add_task("", total=self._pace.total_steps)
        bar.update(self._task, completed=self._pace.step, description=self._pace.describe())
        bar.refresh()


def sentence_for(event: Event) -> Text | None:
    """What a person must know of an event, or None where progress says it already."""
    match event:
        case Notice():
            return Text.assemble(("note: ", "bold cyan"), event.message)
        case Resumed():
            return Text.assemble(("resumed: ", "bold cyan"), f"after step {event.step}, from {event.path}")
        case OrderTaken():
            return Text.assemble(("order: ", "bold cyan"), event.order)
        case AlarmRaised() if event.over:
            return Text.assemble(("over: ", "bold cyan"), event.message)
        case AlarmRaised():
            style = "bold red" if event.severity in ("critical", "fatal") else "bold yellow"
            return Text.assemble((f"{event.severity}: ", style), event.message)
        case CheckpointFailed():
            what = f"the checkpoint at step {event.step} could not be written: {event.reason}"
            return Text.assemble(("warning: ", "bold yellow"), what)
        case CheckpointDamaged():
            return Text.assemble(
                ("warning: ", "bold yellow"), f"{event.path} is damaged and passed over: {event.reason}"
            )
        case WorkerFailed():
            what = f"worker {event.rank} failed at step {event.step}: {event.reason}"
            return Text.assemble(("warning: ", "bold yellow"), what)
        case _:
            return None


def duration(seconds: float) -> str:
    """A length of time for people.

    >>> duration(42.4), duration(125), duration(7384)
    ('42 s', '2:05', '2:03:04')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _bar(console: Console) -> Progress:
    return Progress(
        BarColumn(bar_width=8),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        auto_refresh=False,
    )
