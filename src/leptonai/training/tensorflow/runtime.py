"""Bring TensorFlow up in this process: present or not, on which backend, with how many threads."""

from __future__ import annotations

import importlib.util
import os
import sys
from types import ModuleType

from leptonai.core.errors import InputError

QUIET_ENVIRONMENT = {
    "KERAS_BACKEND": "tensorflow",
    "TF_CPP_MIN_LOG_LEVEL": "2",
}
"""For processes that will import TensorFlow: its start-up messages say nothing a user can act on."""


def require_tensorflow() -> None:
    """Check that Keras on TensorFlow can be imported here, without importing it.

    Raises:
        InputError: TensorFlow is not installed, or Keras already runs on another backend.
    """
    for name in ("tensorflow", "keras"):
        if name not in sys.modules and importlib.util.find_spec(name) is None:
            raise InputError(
                f"a Keras model needs {name}, which is not installed",
                hint="pip install openlepton[tensorflow]",
            )
    keras = sys.modules.get("keras")
    if keras is not None and hasattr(keras, "backend") and keras.backend.backend() != "tensorflow":
        raise InputError(
            f"Keras runs on the {keras.backend.backend()} backend, expected tensorflow",
            hint="set KERAS_BACKEND=tensorflow before Keras is first imported",
        )


def import_keras() -> ModuleType:
    """Keras on the TensorFlow backend, imported now if it was not.

    Raises:
        InputError: see :func:`require_tensorflow`.
    """
    if "keras" not in sys.modules:
        for name, value in QUIET_ENVIRONMENT.items():
            os.environ.setdefault(name, value)
    require_tensorflow()
    import keras

    require_tensorflow()
    return keras  # type: ignore[no-any-return]


def configure(threads: int) -> None:
    """Limit TensorFlow to ``threads`` threads (>= 1) in this process, before it has run anything.

    Raises:
        InputError: TensorFlow is absent or already runs with other threads, or ``threads`` is below 1.
    """
    if threads < 1:
        raise InputError(f"expected threads >= 1, found {threads}")
    import_keras()
    import tensorflow as tf

    found = (
        tf.config.threading.get_intra_op_parallelism_threads(),
        tf.config.threading.get_inter_op_parallelism_threads(),
    )
    if found == (threads, threads):
        return
    try:
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    except RuntimeError as error:
        raise InputError(
            "TensorFlow already runs, its threads can no longer be set",
            hint="call configure before the first tensor is made",
        ) from error
