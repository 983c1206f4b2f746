"""The loss chosen for a model that was not compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from leptonai.core.errors import InputError
from leptonai.sdk.inference import Activation, fitting_loss

ONE_HOT = np.eye(3)[[0, 2, 1]]


@pytest.mark.parametrize(
    ("outputs", "labels", "activation", "expected"),
    [
        (10, np.array([1, 9]), "softmax", "sparse_categorical"),
        (10, np.array([[1], [9]], np.uint8), "other", "sparse_categorical"),
        (3, ONE_HOT, "softmax", "categorical"),
        (3, ONE_HOT.astype(np.int64), "other", "categorical"),
        (3, ONE_HOT * 0.5 + 1 / 6, "softmax", "categorical"),
        (3, np.ones((2, 3)), "sigmoid", "binary"),
        (3, np.ones((2, 3)), "other", "mse"),
        (1, np.array([0, 1]), "sigmoid", "binary"),
        (1, np.array([0.0, 1.0]), "sigmoid", "binary"),
        (1, np.array([0.3, 7.0]), "other", "mse"),
        (1, np.array([[3], [7]]), "other", "mse"),
    ],
)
def test_the_loss_fits_output_and_labels(
    outputs: int, labels: Any, activation: Activation, expected: str
) -> None:
    assert fitting_loss(outputs=outputs, labels=labels, activation=activation) == expected


@pytest.mark.parametrize("labels", [np.array([0.5, 1.5]), np.ones((2, 4)), np.ones((2, 3, 3))])
def test_labels_that_fit_nothing_are_refused(labels: Any) -> None:
    with pytest.raises(InputError, match="no loss fits"):
        fitting_loss(outputs=3, labels=labels, activation="softmax")
