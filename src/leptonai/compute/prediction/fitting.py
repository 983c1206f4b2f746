"""Fits the constants of a calibration to a few measured steps: robust loss, priors for what they do not tell."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from leptonai.compute.prediction.calibration import Calibration
from leptonai.compute.prediction.layouts import Floats, Layouts
from leptonai.compute.prediction.machine import Machine
from leptonai.compute.prediction.transformer_step import TransformerPredictor
from leptonai.compute.prediction.vtrain import Row
from leptonai.core.errors import InputError

PRIOR_SPREAD: Mapping[str, float] = {
    "matmul_efficiency": 0.05,
    "memory_efficiency": 0.15,
    "kernel_seconds": 0.5,
    "host_layer_seconds": 0.5,
    "host_micro_batch_seconds": 0.5,
    "host_stage_seconds": 0.7,
    "host_sharpness": 0.3,
    "straggler_share": 0.5,
    "collective_slowdown": 0.1,
    "collective_skew_seconds": 0.7,
    "between_nodes_efficiency": 0.2,
    "score_bytes": 0.3,
    "logit_bytes": 0.3,
    "undivided_head_slowdown": 0.5,
    "gradient_copy_bytes": 0.5,
    "update_bytes": 0.3,
    "update_seconds": 0.5,
}
"""Standard deviation of the logarithm of each fitted constant around the prior.

Narrow where vendors or benchmarks say the value to a few per cent, wide where only its order is known. Constants that
are not named keep their prior.
"""
LOSS_SCALE = 0.08
"""Relative error beyond which a row's pull stops growing: what repeated runs and library choices differ by."""

MachineOf = Callable[[int], Machine]


def predicted_seconds(rows: Sequence[Row], machine_of: MachineOf, calibration: Calibration) -> Floats:
    """Step time of each row.

    Args:
        rows: any order; those of one problem are predicted together.
        machine_of: the machine with this many devices.
        calibration: constants for all of them.
    """
    problems: dict[object, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        problems[row.model, row.num_gpus, row.global_batch].append(place)
    seconds = np.zeros(len(rows))
    for places in problems.values():
        row = rows[places[0]]
        predictor = TransformerPredictor(
            row.model, machine_of(row.num_gpus), global_batch=row.global_batch, calibration=calibration
        )
        layouts = Layouts.of([rows[place].layout for place in places])
        seconds[places] = predictor.step_seconds(layouts)
    return seconds


def fit(rows: Sequence[Row], machine_of: MachineOf, *, prior: Calibration = Calibration()) -> Calibration:  # noqa: B008
    """The calibration that explains these rows best without straying from the prior.

    Least squares on logarithms of constants: soft-L1 of log(measured / predicted) over :data:`LOSS_SCALE`, and each
    constant's distance from its prior over :data:`PRIOR_SPREAD`.

    Args:
        rows: measured; two or more.
        machine_of: the machine with this many devices.
        prior: where constants start and are drawn to; it also gives those that are not fitted.

    Raises:
        InputError: fewer than two rows.

    Source: Huber-like loss sqrt(1 + z^2) as in Triggs et al. 2000, "Bundle adjustment", section 3.2.
    """
    from scipy.optimize import least_squares  # here: plans do without SciPy

    if len(rows) < 2:
        raise InputError(f"calibration: expected two measured steps or more, found {len(rows)}")
    names = tuple(PRIOR_SPREAD)
    start = np.log([getattr(prior, name) for name in names])
    spread = np.array([PRIOR_SPREAD[name] for name in names])
    measured = np.log([row.seconds for row in rows])

    def with_values(logs: Floats) -> Calibration:
        values = dict(zip(names, np.exp(logs).tolist(), strict=True))
        # A sharper soft maximum than the plain one does not exist, nor an efficiency above 1.
        values["host_sharpness"] = max(1.0, values["host_sharpness"])
        return replace(prior, **values)

    def distances(logs: Floats) -> Floats:
        errors = (measured - np.log(predicted_seconds(rows, machine_of, with_values(logs)))) / LOSS_SCALE
        robust = np.sign(errors) * np.sqrt(2 * (np.sqrt(1 + errors**2) - 1))
        return np.concatenate([robust, (logs - start) / spread])

    found = least_squares(distances, start, x_scale=spread, diff_step=1e-3, max_nfev=60)
    return with_values(found.x)
