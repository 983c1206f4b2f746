"""The peers train the network that ours trains, from the same distribution of weights."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from benchmarks.peers import pytorch_loop_mnist
from benchmarks.peers.mnist_tensors import accuracy, tensor_dataset
from benchmarks.peers.report import read_arguments
from benchmarks.progress import from_report
from benchmarks.workloads.arrays import MEAN, STD, write_arrays

ROOT = Path(__file__).resolve().parents[2]


def example(name: str) -> ModuleType:
    path = ROOT / "examples" / name / "job.py"
    spec = importlib.util.spec_from_file_location(f"example_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def described(model: torch.nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, tuple(value.shape)) for name, value in model.state_dict().items()]


def write_noise(folder: Path, *, train: int = 256, test: int = 100) -> None:
    random = np.random.default_rng(0)
    sizes = {"train": train, "test": test}
    write_arrays(
        folder,
        {
            split: (random.integers(0, 256, (size, 28, 28)).astype(np.uint8), random.integers(0, 10, size))
            for split, size in sizes.items()
        },
    )


def test_the_pytorch_loops_network_is_that_of_the_example() -> None:
    ours, theirs = example("mnist").network(), pytorch_loop_mnist.network()
    assert described(ours) == described(theirs)
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(4, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(images), theirs(images))


@pytest.mark.slow
def test_the_keras_network_computes_the_examples_function_from_the_same_distribution() -> None:
    pytest.importorskip("keras")
    from benchmarks.peers import keras_mnist

    torch.manual_seed(0)
    ours, theirs = example("mnist").network(), keras_mnist.network()
    started = [layer for layer in theirs.layers if layer.get_weights()]
    parameters = list(ours.parameters())
    assert len(parameters) == 2 * len(started)
    for kernel, layer in zip(parameters[::2], started, strict=True):
        bound = kernel[0].numel() ** -0.5
        for values in layer.get_weights():
            assert float(np.abs(values).max()) <= bound
        assert float(np.abs(layer.get_weights()[0]).max()) > 0.9 * bound
    copy_weights(parameters, started)
    images = np.random.default_rng(0).normal(size=(4, 28, 28, 1)).astype(np.float32)
    expected = ours(torch.from_numpy(images).permute(0, 3, 1, 2)).detach().numpy()
    np.testing.assert_allclose(theirs.predict(images, verbose=0), expected, atol=1e-4)


def copy_weights(parameters: list[torch.nn.Parameter], layers: list[object]) -> None:
    """PyTorch's weights into Keras's layers: channels last, and flattened in that order."""
    for kernel, bias, layer in zip(parameters[::2], parameters[1::2], layers, strict=True):
        values = kernel.detach()
        if values.ndim == 4:
            values = values.permute(2, 3, 1, 0)
        elif values.shape[1] == 512:
            values = values.reshape(128, 32, 4, 4).permute(2, 3, 1, 0).reshape(512, 128)
        else:
            values = values.T
        layer.set_weights([values.numpy(), bias.detach().numpy()])  # type: ignore[attr-defined]


def test_arrays_are_normalised_and_read_back(tmp_path: Path) -> None:
    write_noise(tmp_path)
    data = tensor_dataset(tmp_path, "train")
    images, labels = data.tensors
    assert images.shape == (256, 1, 28, 28)
    assert images.dtype == torch.float32
    assert labels.dtype == torch.int64
    pixels = np.load(tmp_path / "train_bytes.npy")
    np.testing.assert_allclose(images[:, 0].numpy() * STD + MEAN, pixels / 255.0, atol=1e-6)


def test_accuracy_counts_every_example_and_leaves_the_model_training(tmp_path: Path) -> None:
    write_noise(tmp_path, test=105)
    test = tensor_dataset(tmp_path, "test")
    labels = test.tensors[1]

    class Constant(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return torch.eye(10)[torch.full((len(images),), 3)]

    model = Constant()
    assert accuracy(model, test, batch_size=20) == int((labels == 3).sum()) / 105
    assert model.training


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("one_thread")
def test_the_plain_loop_reports_each_epoch_and_stops_when_it_is_good_enough(tmp_path: Path) -> None:
    write_noise(tmp_path)
    words = ["--data", str(tmp_path), "--report", str(tmp_path / "report"), "--epochs", "3"]
    pytorch_loop_mnist.train(read_arguments(words))
    pytorch_loop_mnist.train(
        read_arguments([*words[:3], str(tmp_path / "short"), *words[4:], "--accuracy", "0"])
    )
    assert len(from_report((tmp_path / "report").read_text().splitlines()).accuracies) == 3
    assert len(from_report((tmp_path / "short").read_text().splitlines()).accuracies) == 1


def test_the_conv_nets_job_and_the_peers_share_one_recipe(monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.workloads import conv_net

    monkeypatch.syspath_prepend(str(ROOT))
    path = ROOT / "benchmarks" / "workloads" / "sync_job.py"
    spec = importlib.util.spec_from_file_location("sync_job", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    job = module.job
    assert job.model is conv_net.network
    assert (job.optimizer.lr, job.optimizer.momentum) == (conv_net.LEARNING_RATE, conv_net.MOMENTUM)
    assert job.global_batch_size == 2 * conv_net.BATCH_PER_WORKER
