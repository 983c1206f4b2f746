"""Which Keras callbacks a cluster honours, and how it calls them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from leptonai.core.errors import InputError

keras = pytest.importorskip("keras")

from leptonai.sdk.callbacks import EpochCalls, check_callbacks  # noqa: E402


def compiled_model() -> Any:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.5), "mse")
    return model


class Batches(keras.callbacks.Callback):  # type: ignore[misc]
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        raise AssertionError("never called")


@pytest.mark.parametrize(
    ("callback", "hook"),
    [
        (Batches(), "on_train_batch_end"),
        (keras.callbacks.LambdaCallback(on_train_batch_begin=print), "on_train_batch_begin"),
        (keras.callbacks.ModelCheckpoint("unused.keras", save_freq=10), "on_train_batch_end"),
    ],
)
def test_batch_hooks_are_refused_by_name(callback: Any, hook: str) -> None:
    with pytest.raises(InputError, match=f"{type(callback).__name__} overrides {hook}"):
        check_callbacks([callback])


def test_epoch_callbacks_are_accepted() -> None:
    callbacks = [
        keras.callbacks.EarlyStopping(),
        keras.callbacks.ReduceLROnPlateau(),
        keras.callbacks.LearningRateScheduler(lambda epoch: 0.1),
        keras.callbacks.CSVLogger("unused.csv"),
        keras.callbacks.TerminateOnNaN(),
        keras.callbacks.ModelCheckpoint("unused.keras"),
        keras.callbacks.LambdaCallback(on_epoch_end=print),
    ]
    assert check_callbacks(callbacks) == callbacks
    assert check_callbacks(callbacks[0]) == callbacks[:1]


def test_something_else_is_refused() -> None:
    with pytest.raises(InputError, match="function is not a Keras callback"):
        check_callbacks([lambda: None])


class Recording(keras.callbacks.Callback):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    def on_train_begin(self, logs: Any = None) -> None:
        self.calls.append("begin")

    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.calls.append(("epoch", epoch))

    def on_test_end(self, logs: Any = None) -> None:
        self.calls.append(("test", logs))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.calls.append(("end", epoch, logs))

    def on_train_end(self, logs: Any = None) -> None:
        self.calls.append("over")


def test_hooks_come_in_keras_order_with_its_epoch_numbers() -> None:
    recording, model = Recording(), compiled_model()
    calls = EpochCalls(model, [recording], epochs=4, initial_epoch=2, steps=1)
    calls.begin()
    assert calls.end_epoch(0, {"loss": 1.0}) == (False, None)
    assert calls.end_epoch(1, {"loss": 0.5, "val_loss": 0.7}) == (False, None)
    calls.end()
    assert recording.calls == [
        "begin",
        ("epoch", 2),
        ("end", 2, {"loss": 1.0}),
        ("epoch", 3),
        ("test", {"loss": 0.7}),
        ("end", 3, {"loss": 0.5, "val_loss": 0.7}),
        "over",
    ]
    assert calls.history.epoch == [2, 3]
    assert calls.history.history["loss"] == [1.0, 0.5]


def test_a_changed_learning_rate_and_a_stop_are_told() -> None:
    model = compiled_model()
    scheduler = keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate / 2)
    stopper = keras.callbacks.EarlyStopping(monitor="loss", patience=1)
    calls = EpochCalls(model, [scheduler, stopper], epochs=9, initial_epoch=0, steps=1)
    calls.begin()
    assert float(np.asarray(model.optimizer.learning_rate)) == 0.25
    assert calls.end_epoch(0, {"loss": 1.0}) == (False, 0.125)
    stop, _ = calls.end_epoch(1, {"loss": 1.0})
    assert stop
