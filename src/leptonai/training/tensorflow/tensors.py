"""Keras variables under names that are the same in every process, as framework-free tensors and back."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.training.learner import RawTensor

_SHORT_NAMES = {
    "float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
    "int16": "I16", "int8": "I8", "uint64": "U64", "uint32": "U32", "uint16": "U16", "uint8": "U8",
    "bool": "BOOL",
}  # fmt: skip
_LONG_NAMES = {short: long for long, short in _SHORT_NAMES.items()}


def pack(value: NDArray[Any]) -> RawTensor:
    """An array as bytes.

    >>> pack(np.zeros((2, 3), np.float32)).dtype
    'F32'
    """
    name = value.dtype.name
    if name not in _SHORT_NAMES:
        raise InputError(f"a variable of type {name} cannot be saved")
    return RawTensor(dtype=_SHORT_NAMES[name], shape=tuple(value.shape), data=value.tobytes())


def unpack(tensor: RawTensor) -> NDArray[Any]:
    """The array behind the bytes; the inverse of :func:`pack`."""
    name = _LONG_NAMES.get(tensor.dtype)
    if name is None:
        raise InputError(f"unknown tensor type {tensor.dtype!r}")
    dtype = np.dtype(ml_dtypes.bfloat16) if name == "bfloat16" else np.dtype(name)
    return np.frombuffer(tensor.data, dtype=dtype).reshape(tensor.shape)


def model_names(model: Any) -> list[str]:
    """A name for each of ``model.weights``, in order.

    Keras numbers layers by how many the process has built so far (``dense_3``), so a second model of the same
    kind would get other names; here a layer is numbered by its place among the model's own.
    """
    renamed = _layer_names(model)
    names = []
    for variable in model.weights:
        parts = variable.path.split("/")
        if parts[0] == model.name:
            parts = parts[1:]
        names.append("/".join(renamed.get(part, part) for part in parts))
    return _unique(f"model/{name}" for name in names)


def optimizer_names(optimizer: Any, model: Any) -> list[str]:
    """A name for each of ``optimizer.variables``, in order: its own, or its weight's and the slot's."""
    paths = [variable.path.replace("/", "_") for variable in model.weights]
    stable = [name.removeprefix("model/") for name in model_names(model)]
    longest_first = sorted(zip(paths, stable, strict=True), key=lambda pair: -len(pair[0]))
    return _unique(
        f"optimizer/{_slot_name(variable.name, longest_first)}" for variable in optimizer.variables
    )


def _slot_name(name: str, longest_first: list[tuple[str, str]]) -> str:
    for path, stable in longest_first:
        if name.startswith(f"{path}_"):
            return f"{stable}/{name[len(path) + 1 :]}"
    return name


def _layer_names(model: Any) -> dict[str, str]:
    counts: Counter[str] = Counter()
    renamed: dict[str, str] = {}
    for layer in model._flatten_layers(include_self=False):
        kind = re.sub(r"_\d+$", "", layer.name)
        if layer.name in renamed or kind.replace("_", "") != type(layer).__name__.lower():
            continue
        renamed[layer.name] = kind if counts[kind] == 0 else f"{kind}_{counts[kind]}"
        counts[kind] += 1
    return renamed


def _unique(names: Iterable[str]) -> list[str]:
    seen: Counter[str] = Counter()
    result = []
    for name in names:
        result.append(name if seen[name] == 0 else f"{name}#{seen[name]}")
        seen[name] += 1
    return result


def read(names: list[str], variables: list[Any]) -> dict[str, RawTensor]:
    """The variables' values by name."""
    return {name: pack(variable.numpy()) for name, variable in zip(names, variables, strict=True)}


def write(names: list[str], variables: list[Any], tensors: Mapping[str, RawTensor]) -> None:
    """Give the variables the values of those names; all are checked before the first is changed.

    Raises:
        InputError: a name is missing or a shape differs.
    """
    values = []
    for name, variable in zip(names, variables, strict=True):
        if name not in tensors:
            raise InputError(
                f"the saved state has no tensor {name!r}", hint="was it made by another model or optimizer?"
            )
        expected, found = tuple(variable.shape), tuple(tensors[name].shape)
        if found != expected:
            raise InputError(
                f"tensor {name!r}: expected shape {expected}, found {found}",
                hint="was it made by another model?",
            )
        values.append(unpack(tensors[name]))
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
