"""The full MNIST through the package's own loader, laid out for all contestants."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.workloads.arrays import Splits, write_arrays


def prepare_arrays(folder: Path) -> None:
    """Write MNIST under ``folder`` as plain arrays (see :mod:`benchmarks.workloads.arrays`), once."""
    if not (folder / "test_labels.npy").exists():
        write_arrays(folder, splits())


def splits() -> Splits:
    """MNIST's images as uint8 and labels, from where ``lepton data get mnist`` leaves them."""
    from leptonai import datasets

    data = datasets.mnist()
    assert data.evaluate is not None
    return {"train": _whole(data.train), "test": _whole(data.evaluate)}


def _whole(arrays: Any) -> Any:
    images, labels = arrays.take(np.arange(len(arrays), dtype=np.int64))
    return images.reshape(-1, 28, 28), labels
