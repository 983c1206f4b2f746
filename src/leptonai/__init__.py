"""Open AI infrastructure: train on your machines, keep data private, keep runs alive, know the cost first.

Everything public can be taken from here, and nothing is imported before it is used:

>>> from leptonai import SGD
>>> SGD(lr=0.1).momentum
0.0
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from leptonai.compute.cluster import Cluster
    from leptonai.core.errors import Fault, InputError, LeptonError, Refused
    from leptonai.core.privacy import Privacy
    from leptonai.sdk import keras as TensorFlow
    from leptonai.sdk import pytorch as PyTorch
    from leptonai.training.data import augment, datasets
    from leptonai.training.data.dataset import Arrays, Data
    from leptonai.training.elastic import Elastic
    from leptonai.training.job import Checkpoints, Evaluate, Speed, StopWhen, TrainJob
    from leptonai.training.optimizers import SGD, Adagrad, Adam, AdamW, Lamb
    from leptonai.training.parameter_server.settings import ParameterServer
    from leptonai.training.parameter_server.tables.spec import RowAdagrad, RowAdam, RowSGD, Table
    from leptonai.training.schedules import Constant, Cosine, OneCycle, Steps

__version__ = "0.1.0"

__all__ = [
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "Arrays",
    "Checkpoints",
    "Cluster",
    "Constant",
    "Cosine",
    "Data",
    "Elastic",
    "Evaluate",
    "Fault",
    "InputError",
    "Lamb",
    "LeptonError",
    "OneCycle",
    "ParameterServer",
    "Privacy",
    "PyTorch",
    "Refused",
    "RowAdagrad",
    "RowAdam",
    "RowSGD",
    "Speed",
    "Steps",
    "StopWhen",
    "Table",
    "TensorFlow",
    "TrainJob",
    "augment",
    "datasets",
]

_MODULES = {
    "TensorFlow": "leptonai.sdk.keras",
    "PyTorch": "leptonai.sdk.pytorch",
    "augment": "leptonai.training.data.augment",
    "datasets": "leptonai.training.data.datasets",
}
_HOMES = {
    "leptonai.core.errors": ("LeptonError", "InputError", "Refused", "Fault"),
    "leptonai.core.privacy": ("Privacy",),
    "leptonai.compute.cluster": ("Cluster",),
    "leptonai.training.job": ("TrainJob", "Evaluate", "StopWhen", "Checkpoints", "Speed"),
    "leptonai.training.data.dataset": ("Data", "Arrays"),
    "leptonai.training.optimizers": ("SGD", "Adam", "AdamW", "Adagrad", "Lamb"),
    "leptonai.training.elastic": ("Elastic",),
    "leptonai.training.parameter_server.settings": ("ParameterServer",),
    "leptonai.training.parameter_server.tables.spec": ("Table", "RowSGD", "RowAdagrad", "RowAdam"),
    "leptonai.training.schedules": ("Constant", "OneCycle", "Cosine", "Steps"),
}
_NAMES = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value: Any = import_module(_MODULES[name])
    elif name in _NAMES:
        value = getattr(import_module(_NAMES[name]), name)
    else:
        raise AttributeError(f"module 'leptonai' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
