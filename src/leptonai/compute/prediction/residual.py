"""A smooth correction of what the physical model leaves over, which fades to nothing away from its measurements.

It is kept apart: nothing uses it unless asked, and its figures are reported beside the model's, never as them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from leptonai.compute.prediction.layouts import Floats, Layouts
from leptonai.compute.prediction.outcome import Predictions, Predictor
from leptonai.compute.prediction.vtrain import Row
from leptonai.compute.transformer import Transformer
from leptonai.core.errors import InputError

AMPLITUDE = 0.1
"""Standard deviation of the logarithm of what is left over, before any is seen: about the model's own error."""
LENGTH_OCTAVES = 0.7
"""Distance, in doublings of a size, over which the correction keeps 61 % of its value."""
NOISE = 0.03
"""Standard deviation of one measurement's logarithm: what repeated runs differ by."""


@dataclass(frozen=True, slots=True)
class Residual:
    """The mean of a Gaussian process over log2 of (tensor, micro-batch, hidden, sequence).

    Args:
        points_RF: features of R rows.
        weights_R: what each contributes.

    Source: Rasmussen & Williams 2006, "Gaussian Processes for Machine Learning", algorithm 2.1.
    """

    points_RF: Floats
    weights_R: Floats

    def factor(self, model: Transformer, layouts: Layouts) -> Floats:
        """What predictions are multiplied by; 1 far from all rows."""
        kinds, kind = np.unique(
            np.stack([layouts.tensor, layouts.micro_batch]).astype(np.float64), axis=1, return_inverse=True
        )
        features_KF = _features(model, kinds[0], kinds[1])
        return np.asarray(np.exp(_kernel(features_KF, self.points_RF) @ self.weights_R)[kind.ravel()])


def fit_residual(rows: Sequence[Row], predicted_seconds: Floats) -> Residual:
    """The correction that these rows suggest.

    Args:
        rows: measured, the same that calibrated the model.
        predicted_seconds: of the calibrated model, of each, > 0.

    Raises:
        InputError: no rows, or not a prediction for each.
    """
    if not rows or len(predicted_seconds) != len(rows):
        raise InputError(
            f"residual: expected a prediction for each row, found {len(predicted_seconds)} for {len(rows)}"
        )
    points_RF = np.concatenate(
        [
            _features(row.model, np.array([row.layout.tensor]), np.array([row.layout.micro_batch]))
            for row in rows
        ]
    )
    left_R = np.log(np.array([row.seconds for row in rows]) / predicted_seconds)
    covariance_RR = _kernel(points_RF, points_RF) + NOISE**2 * np.eye(len(rows))
    return Residual(points_RF, np.asarray(np.linalg.solve(covariance_RR, left_R), np.float64))


class CorrectedPredictor:
    """A predictor whose every phase is multiplied by a residual; memory is the inner one's.

    Args:
        inner: predicts.
        model: what it predicts for.
        residual: fitted on the same kind of machine.
    """

    def __init__(self, inner: Predictor, model: Transformer, residual: Residual) -> None:
        self._inner, self._model, self._residual = inner, model, residual

    def memory(self, layouts: Layouts) -> Floats:
        """As without the residual."""
        return self._inner.memory(layouts)

    def predict(self, layouts: Layouts) -> Predictions:
        """As without the residual, times its factor."""
        found, factor = self._inner.predict(layouts), self._residual.factor(self._model, layouts)
        return replace(
            found, step_seconds=found.step_seconds * factor, low_seconds=found.low_seconds * factor,
            high_seconds=found.high_seconds * factor, energy_joules=found.energy_joules * factor,
            price=None if found.price is None else found.price * factor,
            phases={name: column * factor for name, column in found.phases.items()},
        )  # fmt: skip


def _features(model: Transformer, tensor: Floats, micro_batch: Floats) -> Floats:
    sizes = np.broadcast_arrays(tensor, micro_batch, float(model.hidden), float(model.sequence))
    return np.log2(np.stack(sizes, axis=1).astype(np.float64))


def _kernel(first_AF: Floats, second_BF: Floats) -> Floats:
    """Squared-exponential covariance."""
    distances_AB = ((first_AF[:, None] - second_BF[None]) ** 2).sum(axis=2)
    return np.asarray(AMPLITUDE**2 * np.exp(-0.5 * distances_AB / LENGTH_OCTAVES**2))
