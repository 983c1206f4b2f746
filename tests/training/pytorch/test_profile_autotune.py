"""What a job costs, and how it is best computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from leptonai.core.errors import InputError
from leptonai.training.data.dataset import Arrays, Data
from leptonai.training.job import Speed, TrainJob
from leptonai.training.pytorch import autotune as tuner
from leptonai.training.pytorch.autotune import autotune
from leptonai.training.pytorch.learner import build_model
from leptonai.training.pytorch.profile import measure_core_flops, profile

rng = np.random.default_rng(2)
IMAGES = rng.normal(size=(40, 3, 8, 8)).astype(np.float32)
LABELS = rng.integers(0, 4, size=40)
DATA = Data(train=Arrays(IMAGES, LABELS))


def conv() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 36, 4))


def job(**changes: object) -> TrainJob:
    settings: dict[str, object] = {
        "model": conv,
        "data": DATA,
        "loss": "cross_entropy",
        "epochs": 2,
        "global_batch_size": 16,
    }
    return TrainJob(**{**settings, **changes})  # type: ignore[arg-type]


def test_flops_and_bytes_are_those_counted_by_hand() -> None:
    found, unused = profile(job(), DATA, build_model(job()))
    convolution, linear = 2 * 36 * 5 * 27, 2 * 180 * 4
    # Forward, plus backward for weights (both layers) and for the input (not of the first layer).
    assert unused == ()
    assert found.flops_per_example == 2 * convolution + 3 * linear
    assert found.num_parameters == 5 * 27 + 5 + 10 + 180 * 4 + 4
    assert found.parameter_bytes == 4 * found.num_parameters
    # Kept for the backward pass: the input and what convolution, normalisation and ReLU put out (Flatten's is ReLU's),
    # log-probabilities and a label; normalisation's statistics and the loss's weight are shared by 16 examples.
    kept = 4 * (192 + 2 * 180 + 4) + 8
    assert found.activation_bytes_per_example == round(kept + 44 / 16)
    assert (found.steps_per_epoch, found.total_steps) == (3, 6)
    assert [layer.kind for layer in found.layers] == ["Conv2d", "BatchNorm2d", "ReLU", "Flatten", "Linear"]
    assert sum(layer.flops for layer in found.layers) == found.flops_per_example


def test_profiling_leaves_the_model_as_it_was() -> None:
    model = build_model(job())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    profile(job(), DATA, model)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_labels_the_model_cannot_name_are_found_without_training() -> None:
    wrong = Data(train=Arrays(IMAGES, np.where(np.arange(40) == 33, 4, LABELS)))
    with pytest.raises(InputError, match="labels out of range: the training labels run from 0 to 4"):
        profile(job(data=wrong), wrong, build_model(job()))


def test_autotune_times_what_can_win_and_keeps_the_quickest() -> None:
    found = autotune(job(), DATA, threads=2, num_workers=1)
    assert len(found.trials) >= 3  # as asked, channels_last, one thread
    assert found.threads in (1, 2)
    assert not found.compile  # a run of milliseconds never earns a compilation back
    assert all(trial.milliseconds_per_step > 0 for trial in found.trials)
    if not tuner.bfloat16_is_fast("cpu"):
        assert found.precision == "float32"


def test_autotune_leaves_alone_what_the_job_fixes() -> None:
    fixed = job(precision="float32", speed=Speed(memory_format="contiguous", compile="off"))
    found = autotune(fixed, DATA, threads=1, num_workers=2)
    assert (found.precision, found.memory_format, found.compile, found.threads) == (
        "float32",
        "contiguous",
        False,
        1,
    )
    assert len(found.trials) == 1


def test_a_core_does_some_work() -> None:
    assert 1e8 < measure_core_flops(0.02) < 1e13
