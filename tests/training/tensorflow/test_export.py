"""A state written as a Keras file gives the same predictions when read back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leptonai.compute.plan import Tuning
from leptonai.core.errors import InputError
from leptonai.training.data.dataset import Arrays, Data
from leptonai.training.job import TrainJob
from leptonai.training.learner import Alone

keras = pytest.importorskip("keras")

from leptonai.training.tensorflow.export import export_keras  # noqa: E402
from leptonai.training.tensorflow.learner import KerasLearner  # noqa: E402


def model() -> Any:
    return keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])


def learner() -> KerasLearner:
    data = Data(train=Arrays(np.ones((4, 4), np.float32), np.arange(4) % 3))
    job = TrainJob(model=model, data=data, global_batch_size=4, epochs=1, loss="cross_entropy", seed=5)
    return KerasLearner(job, Alone(), tuning=Tuning())


def test_exported_file_predicts_as_the_learner_does(tmp_path: Path) -> None:
    trained = learner()
    export_keras(trained.state(), model(), tmp_path / "model.keras")
    read = keras.saving.load_model(tmp_path / "model.keras")
    inputs = np.eye(4, dtype=np.float32)
    np.testing.assert_array_equal(read(inputs).numpy(), trained.model(inputs).numpy())
    assert [path.name for path in tmp_path.iterdir()] == ["model.keras"]


def test_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"\.keras"):
        export_keras(learner().state(), model(), tmp_path / "model.h5")
