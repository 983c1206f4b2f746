"""Real images, and a cluster of two workers on this machine, in a directory of the test's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leptonai import datasets

CLUSTER = "name: here\nnodes: [{name: here}]\nworkers: {count: 2, threads: 1}\n"


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current directory but for ``cluster.yaml``."""
    (tmp_path / "cluster.yaml").write_text(CLUSTER)
    monkeypatch.chdir(tmp_path)
    # In the tests' own processes too, so that a notebook's kernel and its workers find the package.
    source = str(Path(__file__).parents[2] / "src")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([source, os.environ.get("PYTHONPATH", "")]))
    return tmp_path


def mnist(num_examples: int) -> tuple[Any, Any]:
    """Images of shape (N, 28, 28) in [0, 1] and their digits, the set repeated if it is a small one."""
    train = datasets.mnist().train
    images, labels = train.take(np.arange(num_examples) % len(train))
    return images.reshape(num_examples, 28, 28).astype(np.float32) / 255, labels
