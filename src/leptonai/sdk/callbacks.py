"""Keras callbacks around a run on a cluster: those of epochs are called, those of batches are refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras

from leptonai.core.errors import InputError

_BATCH_HOOKS = (
    "on_batch_begin", "on_batch_end", "on_train_batch_begin", "on_train_batch_end",
    "on_test_batch_begin", "on_test_batch_end",
)  # fmt: skip


def check_callbacks(callbacks: Any) -> list[Any]:
    """The callbacks as a list, all of which can be honoured.

    Raises:
        InputError: one of them wants to be called for every batch, which happens in other processes.
    """
    if callbacks is None:
        return []
    if isinstance(callbacks, keras.callbacks.CallbackList):
        raise InputError("fit: a CallbackList cannot be taken to a cluster", hint="give a list of callbacks")
    found = list(callbacks) if isinstance(callbacks, list | tuple) else [callbacks]
    for callback in found:
        if not isinstance(callback, keras.callbacks.Callback):
            raise InputError(f"fit: {type(callback).__name__} is not a Keras callback")
        hook = _batch_hook(callback)
        if hook is not None:
            raise InputError(
                f"fit: callback {type(callback).__name__} overrides {hook}, but batches run in the workers",
                hint="use epoch hooks such as on_epoch_end, or fit outside the cluster",
            )
    return found


def _batch_hook(callback: Any) -> str | None:
    if isinstance(callback, keras.callbacks.TerminateOnNaN):
        return None  # a run ends at the first loss that is not finite in any case
    if isinstance(callback, keras.callbacks.ModelCheckpoint) and callback.save_freq == "epoch":
        return None  # its batch hook only counts towards save_freq
    for hook in _BATCH_HOOKS:
        own = getattr(callback, hook, None)
        # Some callbacks, such as LambdaCallback, keep the hook on the instance.
        function = getattr(own, "__func__", own)
        if function is not getattr(keras.callbacks.Callback, hook):
            return hook
    return None


class EpochCalls:
    """Calls the hooks of callbacks in the order Keras does, and tells what they changed.

    Args:
        model: the caller's model; its weights are those after the epoch when a hook runs.
        epochs, initial_epoch: as given to ``fit``.
        steps: optimiser steps in an epoch.
    """

    def __init__(
        self, model: Any, callbacks: Sequence[Any], *, epochs: int, initial_epoch: int, steps: int
    ) -> None:
        self._model, self._epochs, self._initial = model, epochs, initial_epoch
        self._hooks = keras.callbacks.CallbackList(
            list(callbacks),
            add_history=True,
            add_progbar=False,
            model=model,
            epochs=epochs,
            steps=steps,
            verbose=0,
        )
        self._logs: dict[str, float] = {}

    @property
    def history(self) -> Any:
        """The Keras ``History``."""
        return self._model.history

    def begin(self) -> None:
        """Before training; the learning rate the hooks leave is the first epoch's."""
        self._model.stop_training = False
        self._hooks.on_train_begin()
        self._hooks.on_epoch_begin(self._initial)

    def end_epoch(self, epoch: int, logs: dict[str, float]) -> tuple[bool, float | None]:
        """After the 0-based ``epoch`` of this run: (stop, new learning rate if a hook changed it)."""
        before = learning_rate(self._model)
        if any(name.startswith("val_") for name in logs):
            self._hooks.on_test_begin()
            self._hooks.on_test_end({n[4:]: value for n, value in logs.items() if n.startswith("val_")})
        self._logs = logs
        self._hooks.on_epoch_end(self._initial + epoch, logs)
        upcoming = self._initial + epoch + 1
        if not self._model.stop_training and upcoming < self._epochs:
            self._hooks.on_epoch_begin(upcoming)
        after = learning_rate(self._model)
        return bool(self._model.stop_training), None if after == before else after

    def end(self) -> None:
        """After training."""
        self._hooks.on_train_end(self._logs)


def learning_rate(model: Any) -> float:
    """The optimiser's learning rate now."""
    return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))


OnEpochEnd = Callable[[int, dict[str, float]], tuple[bool, float | None]]
