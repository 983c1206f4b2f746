"""A trained state as a Keras file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from leptonai.core.errors import Fault, InputError
from leptonai.training.learner import LearnerState
from leptonai.training.tensorflow import tensors


def load_weights(state: LearnerState, model: Any) -> None:
    """Give a built Keras model the weights of a saved state.

    Raises:
        InputError: the state is another model's.
    """
    tensors.write(tensors.model_names(model), model.weights, state.tensors)


def export_keras(state: LearnerState, model: Any, path: Path) -> None:
    """Write the model with the state's weights as a ``.keras`` file; a half-written one never appears.

    Raises:
        InputError: the path does not end in ``.keras``, or the state is another model's.
        Fault: the file cannot be written.
    """
    if path.suffix != ".keras":
        raise InputError(f"{path}: expected a file name that ends in .keras")
    load_weights(state, model)
    # Keras chooses the format by the suffix, so the unfinished file has it too.
    unfinished = path.with_name(f".{path.stem}.{os.getpid()}.keras")
    try:
        model.save(unfinished)
        os.replace(unfinished, path)
    except OSError as error:
        raise Fault(f"{path}: cannot be written: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
