"""Between torch's state dictionaries and framework-free :class:`LearnerState` values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from leptonai.core.errors import Fault, InputError
from leptonai.training.learner import LearnerState, RawTensor

_NAMES: Mapping[torch.dtype, str] = {
    torch.float32: "F32", torch.float64: "F64", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
_DTYPES = {name: dtype for dtype, name in _NAMES.items()}


def to_raw(tensor: torch.Tensor) -> RawTensor:
    """The tensor's bytes, copied only if it is not contiguous on the CPU already."""
    if tensor.dtype not in _NAMES:
        raise InputError(f"a tensor of type {tensor.dtype} cannot be saved")
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    data = flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
    return RawTensor(_NAMES[tensor.dtype], tuple(tensor.shape), data)


def from_raw(raw: RawTensor) -> torch.Tensor:
    """A tensor with memory of its own."""
    dtype = _DTYPES.get(raw.dtype)
    if dtype is None:
        raise InputError(f"a tensor of type {raw.dtype} cannot be loaded into PyTorch")
    if not len(raw.data):
        return torch.empty(raw.shape, dtype=dtype)
    return torch.frombuffer(bytearray(raw.data), dtype=dtype).reshape(raw.shape)


def capture(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> LearnerState:
    """Everything the two need to go on exactly where they are."""
    tensors: dict[str, RawTensor] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            raise InputError(f"{type(model).__name__}: state {name!r} is not a tensor and cannot be saved")
        tensors[f"model/{name}"] = to_raw(tensor)
    state = optimizer.state_dict()
    values: dict[str, Any] = {"optimizer": type(optimizer).__name__, "scalars": {}}
    for index, entries in state["state"].items():
        for name, entry in entries.items():
            if isinstance(entry, torch.Tensor):
                tensors[f"optimizer/{index}/{name}"] = to_raw(entry)
            elif entry is not None:
                values["scalars"][f"{index}/{name}"] = entry
    return LearnerState(tensors=tensors, values=values)


def load_model(model: torch.nn.Module, tensors: Mapping[str, RawTensor]) -> None:
    """Load the ``model/`` tensors. Raises InputError when names or shapes do not fit."""
    found = {
        name.removeprefix("model/"): from_raw(raw)
        for name, raw in tensors.items()
        if name.startswith("model/")
    }
    try:
        model.load_state_dict(found)
    except RuntimeError as error:
        raise InputError(f"the checkpoint does not fit {type(model).__name__}: {error}") from error


def load_optimizer(optimizer: torch.optim.Optimizer, state: LearnerState) -> None:
    """Load the ``optimizer/`` tensors and scalars."""
    kind = state.values.get("optimizer")
    if kind != type(optimizer).__name__:
        raise InputError(
            f"the checkpoint was made with optimizer {kind}, the job has {type(optimizer).__name__}"
        )
    entries: dict[int, dict[str, Any]] = {}
    for name, raw in state.tensors.items():
        if name.startswith("optimizer/"):
            _, index, key = name.split("/", 2)
            entries.setdefault(int(index), {})[key] = from_raw(raw)
    for name, value in state.values.get("scalars", {}).items():
        index, key = name.split("/", 1)
        entries.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    try:
        optimizer.load_state_dict({"state": entries, "param_groups": groups})
    except (RuntimeError, ValueError, KeyError) as error:
        raise InputError(f"the checkpoint's optimizer state does not fit: {error}") from error


def check_finite(model: torch.nn.Module) -> None:
    """Raise Fault when a weight is not finite: such a state is not worth keeping."""
    for name, parameter in model.named_parameters():
        if not torch.isfinite(parameter).all():
            raise Fault(
                f"the weights {name} are not finite", hint="lower the learning rate, or clip_norm=1.0"
            )
