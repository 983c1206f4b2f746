"""``torch.nn.Sequential`` with Keras's words."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from torch import nn

from leptonai.sdk import torch_fit, torch_use
from leptonai.sdk.history import History


class Sequential(nn.Sequential):
    """A chain of layers, given one by one or as a list, with ``fit``, ``evaluate`` and ``predict``.

    >>> Sequential([nn.Linear(4, 2), nn.ReLU()])
    Sequential(
      (0): Linear(in_features=4, out_features=2, bias=True)
      (1): ReLU()
    )
    """

    def __init__(self, *layers: Any) -> None:
        if len(layers) == 1 and isinstance(layers[0], list | tuple):
            layers = tuple(layers[0])
        super().__init__(*layers)

    def fit(self, *arguments: Any, **options: Any) -> History:
        """Train on the cluster of the ``with`` block; see :func:`leptonai.sdk.torch_fit.fit`."""
        return torch_fit.fit(self, *arguments, **options)

    def evaluate(self, x: Any, y: Any = None, **options: Any) -> dict[str, float]:
        """Loss and metrics on these examples; see :func:`leptonai.sdk.torch_use.evaluate`."""
        return torch_use.evaluate(self, x, y, **options)

    def predict(self, x: Any, **options: Any) -> NDArray[Any]:
        """Outputs for ``x``; see :func:`leptonai.sdk.torch_use.predict`."""
        return torch_use.predict(self, x, **options)
