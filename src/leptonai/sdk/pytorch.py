"""``from leptonai import PyTorch``: train any ``torch.nn.Module`` on a cluster with ``fit``.

``Sequential`` is ``torch.nn.Sequential`` with ``fit``, ``evaluate`` and ``predict``; the functions of the same
names take any module. Inside ``with Cluster("cluster.yaml"):`` they train on that cluster. Everything else is
PyTorch's: the layers of ``torch.nn`` first (``PyTorch.Linear``), then what ``torch`` itself has. PyTorch is
imported when the first of these is used.
"""

from __future__ import annotations

import difflib
import sys
from importlib import import_module
from typing import Any

from leptonai.sdk.cluster import TrainingCluster as Cluster

__all__ = ["Cluster", "History", "Sequential", "evaluate", "fit", "predict"]  # noqa: F822

_HOMES = {
    "Sequential": "leptonai.sdk.torch_models",
    "History": "leptonai.sdk.history",
    "fit": "leptonai.sdk.torch_fit",
    "evaluate": "leptonai.sdk.torch_use",
    "predict": "leptonai.sdk.torch_use",
}


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(f"module 'PyTorch' has no attribute {name!r}")
    value = _find(name)
    globals()[name] = value
    return value


def _find(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    import torch

    for place in (torch.nn, torch):
        if hasattr(place, name):
            return getattr(place, name)
    near = difflib.get_close_matches(name, [*__all__, *dir(torch.nn)], 1)
    raise AttributeError(f"PyTorch has no {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))


def __dir__() -> list[str]:
    torch = sys.modules.get("torch")
    known = [] if torch is None else dir(torch.nn)
    return sorted({*__all__, *(name for name in known if not name.startswith("_"))})
