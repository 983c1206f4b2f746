"""Epochs of a run as Keras writes them down: one dictionary of metrics each."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from leptonai.core.events import EpochDone, Evaluated, Event, RunEnded, StepDone

OnEpoch = Callable[[int, dict[str, float]], None]


class EpochLog:
    """Gathers events into epochs and hands each on once, when nothing more of it can come.

    Args:
        on_epoch: takes the 0-based epoch and its metrics; those of the evaluation set begin with ``val_``.
        validates: whether the evaluation after this 0-based epoch was asked for; others are left out.

    >>> log = EpochLog(lambda epoch, metrics: print(epoch, metrics))
    >>> log(EpochDone(at_seconds=0, step=9, epoch=1, metrics={"loss": 0.5}, examples=9, seconds=1))
    >>> log(Evaluated(at_seconds=0, step=9, epoch=1, metrics={"loss": 0.7}, examples=9, seconds=1))
    >>> log.close_epoch()
    0 {'loss': 0.5, 'val_loss': 0.7}
    """

    def __init__(self, on_epoch: OnEpoch, *, validates: Callable[[int], bool] = lambda epoch: True) -> None:
        self._on_epoch, self._validates = on_epoch, validates
        self._open: tuple[int, int, dict[str, float]] | None = None

    def __call__(self, event: Event) -> None:
        match event:
            case StepDone() | RunEnded():
                self.close_epoch()
            case EpochDone():
                self.close_epoch()
                self._open = (event.epoch - 1, event.step, dict(event.metrics))
            case Evaluated() if self._open is not None and event.step == self._open[1]:
                epoch, _, metrics = self._open
                if self._validates(epoch):
                    metrics.update({f"val_{name}": value for name, value in event.metrics.items()})
            case _:
                pass

    def close_epoch(self) -> None:
        """The epoch that ended last is complete."""
        if self._open is not None:
            epoch, _, metrics = self._open
            self._open = None
            self._on_epoch(epoch, metrics)


def validation_rule(frequency: int | list[int]) -> Callable[[int], bool]:
    """Keras's ``validation_freq``: every so many epochs, or after these 1-based epochs.

    >>> [validation_rule(2)(epoch) for epoch in range(4)], validation_rule([1])(0)
    ([False, True, False, True], True)
    """
    if isinstance(frequency, int):
        return lambda epoch: (epoch + 1) % frequency == 0
    return lambda epoch: epoch + 1 in frequency


def in_keras_order(metrics: Mapping[str, float]) -> dict[str, float]:
    """Training metrics by name, then the evaluation's by name."""
    return {name: metrics[name] for name in sorted(metrics, key=lambda name: (name.startswith("val_"), name))}
