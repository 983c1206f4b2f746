"""What the examples' recipes promise in their docstrings."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from leptonai.training.job import TrainJob

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def example(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / name / "job.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_importing_an_example_gives_a_job_and_loads_nothing(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LEPTON_DATA", "/nowhere")
    monkeypatch.setenv("LEPTON_HOME", "/nowhere")
    assert isinstance(example(name).job, TrainJob)


def test_the_mnist_network_has_as_many_parameters_as_it_says() -> None:
    assert sum(parameter.numel() for parameter in example("mnist").network().parameters()) == 73_594


def test_pooling_before_the_relu_computes_the_same() -> None:
    values = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    pool, relu = nn.MaxPool2d(2), nn.ReLU()
    assert torch.equal(relu(pool(values)), pool(relu(values)))


def test_the_first_cifar_layer_whitens_patches_and_stays_fixed() -> None:
    # Neighbouring pixels that move together, as in photographs.
    noise = torch.randn(200, 3, 17, 17, generator=torch.Generator().manual_seed(0))
    images = nn.functional.avg_pool2d(noise, 3, stride=1, padding=1)
    layer = nn.Conv2d(3, 24, 2)
    example("cifar10").whiten(layer, images, epsilon=0.0)
    outputs = layer(images).permute(0, 2, 3, 1).reshape(-1, 24)
    outputs = (outputs - outputs.mean(0)).detach()
    covariance = outputs.T @ outputs / len(outputs)
    torch.testing.assert_close(covariance[:12, :12], torch.eye(12), atol=1e-3, rtol=0.0)
    torch.testing.assert_close(covariance[:12, 12:], -torch.eye(12), atol=1e-3, rtol=0.0)
    assert not layer.weight.requires_grad
    assert layer.bias is not None
    assert layer.bias.requires_grad
