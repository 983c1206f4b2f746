"""Events gathered into epochs, and the lines shown for them."""

from __future__ import annotations

import io
from typing import Any

import pytest

from leptonai.core.errors import InputError
from leptonai.core.events import EpochDone, Evaluated, RunStarted, StepDone
from leptonai.sdk.display import Display, display_for
from leptonai.sdk.epochs import EpochLog, in_keras_order, validation_rule


def step(number: int, **changes: Any) -> StepDone:
    values = {"at_seconds": 0.0, "step": number, "epoch": 0, "loss": 1.5, "examples": 8, "seconds": 0.5}
    return StepDone(**{**values, "learning_rate": 0.1, **changes})


def epoch_done(epoch: int, loss: float) -> EpochDone:
    return EpochDone(at_seconds=0, step=2 * epoch, epoch=epoch, metrics={"loss": loss}, examples=8, seconds=1)


def evaluated(epoch: int, loss: float) -> Evaluated:
    return Evaluated(at_seconds=0, step=2 * epoch, epoch=epoch, metrics={"loss": loss}, examples=8, seconds=1)


def test_each_epoch_is_handed_on_once_with_its_own_validation() -> None:
    found: list[Any] = []
    log = EpochLog(lambda epoch, metrics: found.append((epoch, metrics)), validates=validation_rule(2))
    for event in (epoch_done(1, 0.9), evaluated(1, 0.8), step(3), epoch_done(2, 0.7), evaluated(2, 0.6)):
        log(event)
    log.close_epoch()
    log.close_epoch()
    assert found == [(0, {"loss": 0.9}), (1, {"loss": 0.7, "val_loss": 0.6})]


def test_names_come_in_keras_order() -> None:
    metrics = {"val_loss": 1.0, "loss": 2.0, "val_accuracy": 3.0, "accuracy": 4.0}
    assert list(in_keras_order(metrics)) == ["accuracy", "loss", "val_accuracy", "val_loss"]


def show(*, bar: bool, quiet: bool) -> str:
    out = io.StringIO()
    display = Display(out, epochs=3, first_epoch=1, bar=bar, quiet=quiet)
    display(
        RunStarted(at_seconds=0, run_id="r", num_workers=2, total_steps=4, first_step=0, steps_per_epoch=2)
    )
    display(step(1))
    display(step(2))
    display.end_epoch({"loss": 0.25})
    display.close()
    return out.getvalue()


def test_an_epoch_is_one_line() -> None:
    assert show(bar=False, quiet=False) == "training on 2 workers, run r\nepoch 2/3  1.0 s  loss 0.2500\n"


def test_the_bar_is_overwritten_by_the_epochs_line() -> None:
    shown = show(bar=True, quiet=False)
    assert "1/2  loss 1.5000  16 examples/s" in shown
    last = shown.split("\r")[-1]
    assert last.startswith("epoch 2/3  1.0 s  loss 0.2500")
    assert len(last) - 1 == len(shown.split("\r")[-2])


def test_quiet_shows_nothing() -> None:
    assert show(bar=True, quiet=True) == ""


def test_an_unknown_verbosity_is_refused() -> None:
    with pytest.raises(InputError, match="verbose=7"):
        display_for(7, epochs=1)
