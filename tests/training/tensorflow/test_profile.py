"""Costs of Keras layers against counts made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from leptonai.core.errors import InputError
from leptonai.training.data.dataset import Arrays, Data
from leptonai.training.job import TrainJob

keras = pytest.importorskip("keras")

from leptonai.training.tensorflow.profile import profile_keras  # noqa: E402


def job_for(shape: tuple[int, ...], *, highest_label: int = 1) -> tuple[TrainJob, Data]:
    labels = np.array([0, highest_label] * 4)
    data = Data(train=Arrays(np.zeros((8, *shape), np.float32), labels))
    return TrainJob(model=lambda: None, data=data, global_batch_size=3, epochs=2, loss="cross_entropy"), data


def test_costs_of_a_convolution_and_a_dense_layer() -> None:
    model = keras.Sequential([keras.layers.Conv2D(4, 3), keras.layers.Flatten(), keras.layers.Dense(10)])
    job, data = job_for((8, 8, 2))
    work = profile_keras(model, job, data)
    convolution, dense = 2 * 6 * 6 * 3 * 3 * 2 * 4, 2 * 6 * 6 * 4 * 10
    # Forward, plus backward for weights (both layers) and for the input (not of the first layer).
    assert work.flops_per_example == 2 * convolution + 3 * dense
    assert work.num_parameters == 3 * 3 * 2 * 4 + 4 + 144 * 10 + 10
    assert work.parameter_bytes == 4 * work.num_parameters
    assert (work.num_examples, work.steps_per_epoch, work.total_steps) == (8, 3, 6)
    assert [layer.kind for layer in work.layers][-3:] == ["Conv2D", "Flatten", "Dense"]


def test_a_recurrent_layer_counts_every_step_of_its_sequence() -> None:
    model = keras.Sequential([keras.Input((5, 3)), keras.layers.SimpleRNN(4), keras.layers.Dense(2)])
    work = profile_keras(model, *job_for((5, 3)))
    inputs, states, dense = 2 * 5 * 3 * 4, 2 * 5 * 4 * 4, 2 * 4 * 2
    assert work.flops_per_example == 2 * inputs + 3 * (states + dense)


def test_a_model_with_its_own_call_is_counted_by_its_kernels() -> None:
    class Own(keras.Model):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.dense = keras.layers.Dense(2)

        def call(self, inputs: Any) -> Any:
            return self.dense(inputs)

    assert profile_keras(Own(), *job_for((3,))).flops_per_example == 2 * 2 * 3 * 2


def test_labels_beyond_the_outputs_are_refused() -> None:
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    with pytest.raises(InputError, match="from 0 to 2, the model has 2 outputs"):
        profile_keras(model, *job_for((3,), highest_label=2))
