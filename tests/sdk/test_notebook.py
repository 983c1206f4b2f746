"""Both frameworks in the cells of one notebook: a model defined there trains there, and its curve is shown."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.sdk.conftest import mnist

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

PYTORCH_CELL = """
import numpy as np
from leptonai import PyTorch
images, labels = np.load("images.npy"), np.load("labels.npy")
class Network(PyTorch.Module):
    def __init__(self):
        super().__init__()
        self.layers = PyTorch.Sequential(PyTorch.Flatten(), PyTorch.Linear(784, 10))
    def forward(self, inputs):
        return self.layers(inputs)
network = Network()
with PyTorch.Cluster("cluster.yaml"):
    history = PyTorch.fit(network, images, labels, epochs=2, batch_size=64)
print("measured", PyTorch.evaluate(network, images, labels)["accuracy"])
"""
TENSORFLOW_CELL = """
from leptonai import TensorFlow
class Halved(TensorFlow.Layer):
    def call(self, inputs):
        return inputs / 2
model = TensorFlow.Sequential([TensorFlow.Flatten((28, 28)), Halved(), TensorFlow.Dense(10, activation="softmax")])
with TensorFlow.TFCluster("cluster.yaml"):
    model.fit(images, labels, epochs=2, batch_size=64)
print("measured", model.evaluate(images, labels, verbose=0)[1])
"""


def run_cells(cells: list[str], folder: Path) -> list[Any]:
    """The outputs of each cell."""
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    nbclient.NotebookClient(notebook, timeout=200, resources={"metadata": {"path": str(folder)}}).execute()
    return [cell.outputs for cell in notebook.cells]


def text_of(outputs: Any) -> str:
    return "".join(output.text for output in outputs if output.output_type == "stream")


def test_models_defined_in_cells_train_and_show_their_curve(
    workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in ("IPYTHONDIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR"):
        monkeypatch.setenv(variable, str(workplace / "jupyter"))
    images, labels = mnist(512)
    np.save(workplace / "images.npy", images)
    np.save(workplace / "labels.npy", labels)
    cells = [PYTORCH_CELL]
    if importlib.util.find_spec("keras") is not None:
        cells.append(TENSORFLOW_CELL)
    for outputs in run_cells(cells, workplace):
        text = text_of(outputs)
        assert "epoch 2/2" in text
        assert "examples/s" in text
        assert float(text.rpartition("measured ")[2]) > 0.3
        pictures = [output for output in outputs if output.output_type == "display_data"]
        assert [list(picture.data) for picture in pictures] == [["image/png", "text/plain"]]
