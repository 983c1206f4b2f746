"""LightGBM behind one small face: the only module that imports it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from leptonai.core.errors import InputError
from leptonai.operations.predict.history import Floats

Objective = Literal["l2", "binary"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How trees are grown. Small, regularised trees: rows of one unit resemble each other."""

    num_trees: int = 150
    learning_rate: float = 0.06
    num_leaves: int = 15
    min_rows: int = 40
    share_of_features: float = 0.3
    share_of_rows: float = 0.5
    penalty: float = 5.0
    num_bins: int = 63


@dataclass(frozen=True, slots=True)
class Trees:
    """Fitted trees as LightGBM's own text, which is what is saved; it is parsed once."""

    text: str
    _loaded: list[Any] = field(default_factory=list, repr=False, compare=False)

    def predict(self, rows_NF: Floats) -> Floats:
        """One number a row: the mean, or the chance."""
        return np.asarray(self._model().predict(rows_NF, num_threads=1), dtype=float)

    def contributions(self, rows_NF: Floats) -> Floats:
        """(N, F): how much each feature moved each row's raw score (TreeSHAP)."""
        made = np.asarray(self._model().predict(rows_NF, pred_contrib=True, num_threads=1), dtype=float)
        return np.asarray(made[:, :-1])

    def num_features(self) -> int:
        """Features that rows must have.

        Raises:
            InputError: the text is no model of LightGBM's.
        """
        return int(self._model().num_feature())

    def _model(self) -> Any:
        if not self._loaded:
            lightgbm = _lightgbm()
            try:
                self._loaded.append(lightgbm.Booster(model_str=self.text))
            except lightgbm.basic.LightGBMError as error:
                raise InputError(f"the trees of this model cannot be read: {error}") from error
        return self._loaded[0]


def grow(
    rows_NF: Floats,
    targets_N: Floats,
    weights_N: Floats,
    *,
    objective: Objective,
    seed: int,
    recipe: Recipe | None = None,
    num_threads: int = 1,
) -> Trees:
    """Trees for these rows; the same on every machine for one seed and number of threads.

    Raises:
        InputError: LightGBM is not installed.
    """
    lightgbm, recipe = _lightgbm(), recipe or Recipe()
    words: Mapping[str, Any] = {
        "objective": objective, "learning_rate": recipe.learning_rate, "num_leaves": recipe.num_leaves,
        "min_data_in_leaf": recipe.min_rows, "feature_fraction": recipe.share_of_features,
        "bagging_fraction": recipe.share_of_rows, "bagging_freq": 1, "lambda_l2": recipe.penalty,
        "max_bin": recipe.num_bins, "verbose": -1, "num_threads": num_threads, "seed": seed,
        "deterministic": True, "force_row_wise": True,
    }  # fmt: skip
    data = lightgbm.Dataset(
        rows_NF, targets_N, weight=weights_N, params={"max_bin": recipe.num_bins, "verbose": -1}
    )
    grown = lightgbm.train(dict(words), data, recipe.num_trees)
    return Trees(grown.model_to_string())


def _lightgbm() -> Any:
    try:
        import lightgbm
    except ImportError as error:
        raise InputError(
            "predictions need LightGBM, which is not installed", hint="pip install 'openlepton[operations]'"
        ) from error
    return lightgbm
