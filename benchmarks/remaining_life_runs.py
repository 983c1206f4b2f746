"""One contestant of ``remaining_life``: one seed on one set.

``LEPTON_DATA=... python -m benchmarks.remaining_life_runs --report FILE --set NAME --seed N [--quick]``, where NAME is
FD001, FD002, FD004 or AI4I.

C-MAPSS (Saxena & Goebel 2008): the model is fitted on the training engines alone and asked once about the last cycle
of every test engine; nothing is chosen by the test set. AI4I 2020 (Matzka 2020): five stratified folds of its rows,
the model fitted on four and asked about the fifth; its failures follow written rules, so it tests that rules are
found and chances are true, no more.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import io
import json
import os
import time
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from leptonai.operations.predict.calibrated import Reliability, reliability
from leptonai.operations.predict.history import History, history_from_columns
from leptonai.operations.predict.life_fit import fit_remaining_life
from leptonai.operations.predict.remaining_life import Outlook
from leptonai.operations.predict.rows import fit_rows

CAP = 125.0
"""Cycles at which the test's remaining lives are cut for the figure that many papers give."""
FOLDS = 5
LEAST_CHANCE = 0.05
AI4I_KINDS = {"L": 0.0, "M": 1.0, "H": 2.0}
AI4I_COLUMNS = (
    "Type", "Air temperature [K]", "Process temperature [K]", "Rotational speed [rpm]", "Torque [Nm]",
    "Tool wear [min]",
)  # fmt: skip
Floats = NDArray[np.float64]


def data_path(*parts: str) -> Path:
    """A file of the data sets.

    Raises:
        FileNotFoundError: it is in none of the folders of ``LEPTON_DATA``.
    """
    for folder in os.environ.get("LEPTON_DATA", "").split(os.pathsep):
        path = Path(folder or ".").joinpath(*parts)
        if path.is_file():
            return path
    raise FileNotFoundError(f"{'/'.join(parts)} is in no folder of LEPTON_DATA")


def read_engines(path: Path, *, failed: bool, most: int | None = None) -> History:
    """Engines of one file of C-MAPSS: unit, cycle, three settings, 21 sensors."""
    rows = np.loadtxt(io.StringIO(gzip.decompress(path.read_bytes()).decode()))
    if most is not None:
        rows = rows[rows[:, 0] <= most]
    names = [str(int(unit)) for unit in rows[:, 0]]
    return history_from_columns(
        names,
        rows[:, 1],
        {f"s{at + 1}": rows[:, 5 + at] for at in range(21)},
        settings={f"setting {at + 1}": rows[:, 2 + at] for at in range(3)},
        failed=dict.fromkeys(names, failed),
    )


def run_engines(which: str, seed: int, quick: bool) -> dict[str, float]:
    """Fit on the training engines, ask about the test engines."""
    most = 30 if quick else None
    train = read_engines(data_path("cmapss", f"train_{which}.txt.gz"), failed=True, most=most)
    test = read_engines(data_path("cmapss", f"test_{which}.txt.gz"), failed=False, most=most)
    left = np.loadtxt(
        io.StringIO(gzip.decompress(data_path("cmapss", f"RUL_{which}.txt.gz").read_bytes()).decode())
    )
    left = left[: len(test.units)]
    started = time.perf_counter()
    model, _ = fit_remaining_life(train, seed=seed)
    seconds = time.perf_counter() - started
    found = model.predict(test)
    outlooks = [each for each in found if isinstance(each, Outlook)]
    known = np.array([isinstance(each, Outlook) for each in found])
    true = left[known]
    guess = np.array([each.remaining for each in outlooks])
    inside = [each.low <= value <= each.high for each, value in zip(outlooks, true, strict=True)]
    away = np.minimum(guess, CAP) - np.minimum(true, CAP)
    late = guess - true
    return {
        "rmse": float(np.sqrt(np.mean((guess - true) ** 2))),
        "rmse_capped": float(np.sqrt(np.mean(away**2))),
        "nasa_score": float(np.where(late < 0, np.exp(-late / 13) - 1, np.exp(late / 10) - 1).sum()),
        "coverage": float(np.mean(inside)),
        "width": float(np.mean([each.high - each.low for each in outlooks])),
        "fit_seconds": seconds,
        "not_enough": float((~known).sum()),
    }


def run_parts(seed: int) -> dict[str, float]:
    """Five folds of AI4I; ``seed`` deals the rows and grows the trees."""
    with zipfile.ZipFile(data_path("ai4i2020", "ai4i2020.zip")) as archive:
        text = archive.read(archive.namelist()[0]).decode()
    rows = list(csv.DictReader(io.StringIO(text)))
    columns = [[AI4I_KINDS[row["Type"]], *(float(row[name]) for name in AI4I_COLUMNS[1:])] for row in rows]
    values, failed = np.array(columns), np.array([row["Machine failure"] == "1" for row in rows])
    fold = np.empty(len(failed), dtype=int)
    rng = np.random.default_rng(seed)
    for outcome in (False, True):
        at = rng.permutation(np.flatnonzero(failed == outcome))
        fold[at] = np.arange(len(at)) % FOLDS
    chance = np.empty(len(failed))
    started = time.perf_counter()
    for number in range(FOLDS):
        seen = fold != number
        model, _ = fit_rows(values[seen], failed[seen], AI4I_COLUMNS, seed=seed)
        chance[~seen] = model.chances(values[~seen])
    seconds = (time.perf_counter() - started) / FOLDS
    likely, whole = chance >= LEAST_CHANCE, np.ones(len(failed))
    held = reliability(chance, failed, whole)
    return {
        "pr_auc": average_precision(chance, failed),
        "calibration": of_likely(chance, failed, likely).error,
        "likely": float(likely.sum()),
        "brier_ratio": held.brier / held.base_brier,
        "fit_seconds": seconds,
    }


def of_likely(chance: Floats, failed: NDArray[np.bool_], likely: NDArray[np.bool_]) -> Reliability:
    """Reliability of the rows whose chance says something."""
    return reliability(chance[likely], failed[likely], np.ones(int(likely.sum())))


def average_precision(chance: Floats, failed: NDArray[np.bool_]) -> float:
    """Area under the precision-recall curve, as the mean precision at each failure; ties count together.

    >>> average_precision(np.array([0.9, 0.8, 0.7]), np.array([True, False, True]))
    0.8333333333333333
    """
    levels, at = np.unique(-chance, return_inverse=True)
    hits, num = np.bincount(at, failed, len(levels)), np.bincount(at, minlength=len(levels))
    precision = np.cumsum(hits) / np.cumsum(num)
    return float((precision * hits).sum() / hits.sum())


def main() -> None:
    """Run one and write the report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--set", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true")
    words = parser.parse_args()
    numbers = (
        run_parts(words.seed) if words.set == "AI4I" else run_engines(words.set, words.seed, words.quick)
    )
    words.report.write_text(json.dumps(numbers))


if __name__ == "__main__":
    main()
