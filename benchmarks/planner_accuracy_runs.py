"""Predicts every measured step, and writes errors, rank correlations and regrets as JSON.

``python -m benchmarks.planner_accuracy_runs --report FILE [--quick]``; reads ``$LEPTON_DATA/planner/vtrain``.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.planner_accuracy_published import published_errors
from leptonai.compute.prediction import vtrain
from leptonai.compute.prediction.calibration import Calibration
from leptonai.compute.prediction.fitting import fit, predicted_seconds
from leptonai.compute.prediction.layouts import Floats, Layouts
from leptonai.compute.prediction.machine import Machine
from leptonai.compute.prediction.residual import fit_residual
from leptonai.compute.prediction.vtrain import Row

A100_MULTIPROCESSORS = 108
"""NVIDIA A100 data sheet; the only number of the priors that is set for the device."""
PRIOR = Calibration(num_multiprocessors=A100_MULTIPROCESSORS)


def percent(rows: Sequence[Row], seconds: Floats, without: Sequence[int] = ()) -> list[float]:
    """Absolute errors in per cent of all rows but those that calibrated."""
    left = set(without)
    return [
        100 * abs(float(mine) / row.seconds - 1)
        for place, (row, mine) in enumerate(zip(rows, seconds, strict=True))
        if place not in left
    ]


def problem(row: Row) -> Hashable:
    """Rows of one problem differ only in how it is laid out: model, devices, global batch."""
    return row.model, row.num_gpus, row.global_batch


def model_size(row: Row) -> Hashable:
    """Coarser: all rows of one model."""
    return row.model


def regrets(rows: Sequence[Row], seconds: Floats, key: Callable[[Row], Hashable] = problem) -> list[float]:
    """Of each problem with two layouts or more: per cent by which the layout predicted best is slower than the best."""
    found = []
    for places in _groups(rows, key):
        measured = np.array([rows[place].seconds for place in places])
        found.append(100 * float(measured[int(np.argmin(seconds[places]))] / measured.min() - 1))
    return found


def rank_correlations(rows: Sequence[Row], seconds: Floats, key: Callable[[Row], Hashable]) -> list[float]:
    """Spearman's, over the layouts of each group of three rows or more."""
    found = []
    for places in _groups(rows, key, least=3):
        measured = np.array([rows[place].seconds for place in places])
        found.append(float(np.corrcoef(_ranks(seconds[places]), _ranks(measured))[0, 1]))
    return found


def _groups(rows: Sequence[Row], key: Callable[[Row], Hashable], least: int = 2) -> list[list[int]]:
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for place, row in enumerate(rows):
        groups[key(row)].append(place)
    return [places for places in groups.values() if len(places) >= least]


def _ranks(values: NDArray[Any]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return np.asarray((np.cumsum(counts) - (counts - 1) / 2)[inverse], np.float64)


def report(folder: Path, *, quick: bool = False) -> dict[str, Any]:
    """All samples of one run."""
    single = vtrain.read_rows(folder / vtrain.SINGLE_FILE)
    multi = vtrain.read_rows(folder / vtrain.MULTI_FILE)
    tables = vtrain.read_all_reduces(folder)

    def machine(num_gpus: int) -> Machine:
        return vtrain.machine_of(num_gpus, tables)

    chosen_single, chosen_multi = vtrain.calibration_rows(single, multi)
    ours = [single[place] for place in chosen_single] + [multi[place] for place in chosen_multi]
    calibration = fit(ours, machine, prior=PRIOR)
    on_single, on_multi = (predicted_seconds(rows, machine, calibration) for rows in (single, multi))
    zero_single, zero_multi = (predicted_seconds(rows, machine, PRIOR) for rows in (single, multi))
    residual = fit_residual(ours, predicted_seconds(ours, machine, calibration))
    factors = np.array([residual.factor(row.model, Layouts.of([row.layout]))[0] for row in single])
    corrected = on_single * factors
    samples: dict[str, list[float]] = {
        "single": percent(single, on_single, chosen_single),
        "multi": percent(multi, on_multi, chosen_multi),
        "zero_single": percent(single, zero_single),
        "zero_multi": percent(multi, zero_multi),
        "residual_single": percent(single, corrected, chosen_single),
        "rank_problem": rank_correlations(single, on_single, problem),
        "rank_model": rank_correlations(single, on_single, model_size),
        "regret": regrets(single, on_single),
        "residual_regret": regrets(single, corrected),
        "multi_regret": regrets(multi, on_multi),
        **published_errors(calibration, tables),
        **{f"zero_{name}": values for name, values in published_errors(PRIOR, tables).items()},
        **({} if quick else left_out(single, multi, chosen_single, chosen_multi, machine)),
        "num_calibration_rows": [float(len(ours))],
        "calibration_share": [100.0 * len(ours) / (len(single) + len(multi))],
    }
    return {
        "samples": samples,
        "calibration": dataclasses.asdict(calibration),
        "worst": worst(multi, on_multi),
    }


def left_out(
    single: Sequence[Row],
    multi: Sequence[Row],
    chosen_single: Sequence[int],
    chosen_multi: Sequence[int],
    machine: Callable[[int], Machine],
) -> dict[str, list[float]]:
    """Errors on single-node rows of a hidden size none of whose rows calibrated: how the model meets a new size."""
    errors: dict[str, list[float]] = {}
    for hidden in sorted({row.model.hidden for row in single}):
        rows = [single[place] for place in chosen_single if single[place].model.hidden != hidden]
        calibration = fit([*rows, *(multi[place] for place in chosen_multi)], machine, prior=PRIOR)
        others = [row for row in single if row.model.hidden == hidden]
        errors[f"left_out_{hidden}"] = percent(others, predicted_seconds(others, machine, calibration))
    rows = [single[place] for place in chosen_single]
    calibration = fit(rows, machine, prior=PRIOR)
    errors["left_out_multi"] = percent(multi, predicted_seconds(multi, machine, calibration))
    return errors


def worst(rows: Sequence[Row], seconds: Floats, count: int = 5) -> list[str]:
    """The rows furthest off, in words."""
    order = np.argsort([-abs(mine / row.seconds - 1) for row, mine in zip(rows, seconds, strict=True)])
    return [
        f"hidden {rows[place].model.hidden}, tensor {rows[place].layout.tensor}, data {rows[place].layout.data}, "
        f"pipeline {rows[place].layout.pipeline}, micro-batch {rows[place].layout.micro_batch}: "
        f"{rows[place].seconds:.2f} s, "
        f"predicted {seconds[place]:.2f} s"
        for place in order[:count].tolist()
    ]


def main() -> None:
    """Write the report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--quick", action="store_true", help="without the calibrations that leave sizes out")
    words = parser.parse_args()
    folders = [Path(each) for each in os.environ.get("LEPTON_DATA", "").split(os.pathsep) if each]
    words.report.write_text(json.dumps(report(vtrain.find_vtrain(folders), quick=words.quick)))


if __name__ == "__main__":
    main()
