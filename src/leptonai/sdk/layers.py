"""Keras layers that also take the shape of their input as a leading tuple: ``Dense((784,), 10)``."""

from __future__ import annotations

import functools
import inspect
from typing import Any

# First parameters that never take a tuple of whole numbers, so a leading tuple can only be a shape. A layer
# whose first parameter may be one (pool_size, padding, target_shape, kernel_size, axis...) keeps its meaning.
_NEVER_A_TUPLE = frozenset(
    {
        "activation", "addition_factor", "alpha_initializer", "cell", "data_format", "equation", "fft_length",
        "filters", "function", "groups", "head_dim", "input_dim", "l1", "layer", "mask_value", "max_number",
        "max_tokens", "max_value", "mode", "n", "negative_slope", "num_bins", "num_heads", "num_tokens", "rate",
        "stddev", "units", "use_scale",
    }
)  # fmt: skip
_AXIS_IS_ONE_NUMBER = frozenset({"BatchNormalization"})


def is_shape(value: Any) -> bool:
    """Whether a value reads as the shape of one example: a tuple of whole numbers, None for an open size.

    >>> is_shape((28, 28, 1)), is_shape((None, 3)), is_shape([28, 28]), is_shape(())
    (True, True, False, False)
    """
    return (
        isinstance(value, tuple)
        and len(value) > 0
        and all(
            size is None or (isinstance(size, int) and not isinstance(size, bool) and size > 0)
            for size in value
        )
    )


def takes_leading_shape(layer: type) -> bool:
    """Whether a leading tuple cannot be meant for the layer's own first parameter."""
    if inspect.isabstract(layer) or layer.__name__ in ("Layer", "Wrapper", "InputSpec"):
        return False
    if layer.__name__ in _AXIS_IS_ONE_NUMBER:
        return True
    parameters = list(inspect.signature(layer.__init__).parameters.values())[1:]  # type: ignore[misc]
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return not positional or positional[0].name in _NEVER_A_TUPLE


def with_leading_shape(layer: type) -> Any:
    """The layer as a function that also takes its input's shape first; its signature stays Keras's.

    Returns the class itself where a leading tuple would mean something else to Keras.
    """
    if not takes_leading_shape(layer):
        return layer

    @functools.wraps(layer, updated=())
    def make(*arguments: Any, **options: Any) -> Any:
        if not (arguments and is_shape(arguments[0])):
            return layer(*arguments, **options)
        made = layer(*arguments[1:], **options)
        # What Keras's own input_shape= leaves for Sequential, without its warning against it.
        made._input_shape_arg = arguments[0]
        return made

    make.__signature__ = inspect.signature(layer)  # type: ignore[attr-defined]
    return make
