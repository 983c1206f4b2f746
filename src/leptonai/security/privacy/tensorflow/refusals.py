"""Keras layers that mix examples, and what to use in their place."""

from __future__ import annotations

from typing import Any

from leptonai.core.errors import Refused

_SUBSTITUTES = {
    "BatchNormalization": "GroupNormalization or LayerNormalization",
    "SpectralNormalization": "the layer without it",
}


def check_model(model: Any) -> None:
    """Refuse layers through which one example could touch another's gradient.

    Raises:
        Refused: there is one; it is named with its substitute.
    """
    for layer in model._flatten_layers():
        kind = type(layer).__name__
        if kind in _SUBSTITUTES and layer.trainable:
            raise Refused(
                f"{layer.path or layer.name}: {kind} makes each example's gradient depend on the others",
                hint=f"use {_SUBSTITUTES[kind]}",
            )
        for variable in layer._non_trainable_variables if layer.trainable else ():
            if variable.dtype in ("float32", "float16", "bfloat16", "float64"):
                raise Refused(
                    f"{layer.path or layer.name}: keeps statistics of the examples ({variable.path})",
                    hint="take a layer without moving statistics",
                )
