"""Which loss fits a model's output and its labels, for a model that was not compiled. Framework-free."""

from __future__ import annotations

from typing import Any, Literal

from numpy.typing import NDArray

from leptonai.core.errors import InputError

Activation = Literal["softmax", "log_softmax", "sigmoid", "other"]
"""What the model's last layer does to its sums."""
FittingLoss = Literal["sparse_categorical", "categorical", "binary", "mse"]


def fitting_loss(*, outputs: int, labels: NDArray[Any], activation: Activation) -> FittingLoss:
    """The loss for ``outputs`` numbers an example.

    Whole-number labels name classes (``sparse_categorical``, or ``binary`` for a single sigmoid), rows of one 1
    and zeros too (``categorical``); several sigmoids are independent yes-or-no answers (``binary``); everything
    else is a quantity (``mse``).

    Args:
        outputs: size of the model's output, >= 1.
        labels: shape (N,), (N, 1) or (N, outputs).
        activation: of the last layer.

    Raises:
        InputError: no loss fits.

    >>> import numpy as np
    >>> fitting_loss(outputs=10, labels=np.array([3, 7]), activation="softmax")
    'sparse_categorical'
    >>> fitting_loss(outputs=1, labels=np.array([0.5, 7.0]), activation="other")
    'mse'
    """
    width = 1 if labels.ndim == 1 else labels.shape[-1]
    whole = labels.dtype.kind in "iub"
    if labels.ndim > 2 or width not in (1, outputs):
        raise _no_loss(outputs, labels)
    if width == outputs > 1:
        if activation == "sigmoid":
            return "binary"
        if activation in ("softmax", "log_softmax") or _one_hot(labels):
            return "categorical"
        return "mse"
    if outputs > 1:
        if whole:
            return "sparse_categorical"
        raise _no_loss(outputs, labels)
    return "binary" if activation == "sigmoid" else "mse"


def is_classification(loss: FittingLoss) -> bool:
    """Whether accuracy means something under this loss."""
    return loss != "mse"


def _one_hot(labels: NDArray[Any]) -> bool:
    return bool(((labels == 0) | (labels == 1)).all() and (labels.sum(axis=-1) == 1).all())


def _no_loss(outputs: int, labels: NDArray[Any]) -> InputError:
    return InputError(
        f"fit: no loss fits a model with {outputs} outputs and {labels.dtype} labels of shape {labels.shape}",
        hint="use whole-number labels, or one-hot rows as wide as the output, or name the loss yourself",
    )
