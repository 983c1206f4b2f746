"""``from leptonai import TensorFlow``: Keras's layers and models, whose ``fit`` trains on a cluster.

``TFCluster("cluster.yaml")`` is the cluster; inside ``with TFCluster(...):`` a model's ``fit`` trains on it and
outside it is Keras's own. Every layer of Keras is here, and takes the shape of its input as an optional leading
tuple. ``Sequential`` and ``Model`` are Keras's; everything else (``optimizers``, ``losses``, ``callbacks``...)
is Keras's module of that name. TensorFlow is imported when the first of these is used.
"""

from __future__ import annotations

import difflib
import inspect
import sys
from typing import Any

from leptonai.sdk.cluster import TrainingCluster as TFCluster

__all__ = ["Model", "Sequential", "TFCluster"]  # noqa: F822


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(f"module 'TensorFlow' has no attribute {name!r}")
    value = _find(name)
    globals()[name] = value
    return value


def _find(name: str) -> Any:
    from leptonai.training.tensorflow.runtime import import_keras

    keras = import_keras()
    if name in ("Model", "Sequential"):
        from leptonai.sdk import keras_models

        return getattr(keras_models, name)
    found = getattr(keras.layers, name, None)
    if inspect.isclass(found):
        from leptonai.sdk.layers import with_leading_shape

        return with_leading_shape(found)
    if found is not None:
        return found
    if hasattr(keras, name):
        return getattr(keras, name)
    near = difflib.get_close_matches(name, [*dir(keras.layers), *dir(keras)], 1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise AttributeError(f"TensorFlow has no {name!r}{hint}")


def __dir__() -> list[str]:
    keras = sys.modules.get("keras")
    known = [] if keras is None else [*dir(keras.layers), *dir(keras)]
    return sorted({*__all__, *(name for name in known if not name.startswith("_"))})
