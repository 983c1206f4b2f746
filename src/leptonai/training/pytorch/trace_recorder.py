"""Sees every kernel call of a forward and a backward pass, and which layer made it."""

from __future__ import annotations

import bisect
import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules import module as module_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from leptonai.training.pytorch.trace_operations import cost, name_of, tensor_bytes
from leptonai.training.traced import Call, Pass, Seen

# What autograd gives to the nodes that add up a parameter's gradient, which no forward call made.
_ACCUMULATE = 2**63


class Recorder(TorchDispatchMode):
    """While entered, writes every call into ``found``, with the layer that made it.

    A backward call belongs to the layer whose forward call made its autograd node: nodes are numbered in the
    order they are made, and the recorder notes the number at which each layer begins and ends.

    Args:
        model: the model; calls outside it have no layer.
        num_examples: the batch size of this pass.
    """

    def __init__(self, model: nn.Module, num_examples: int) -> None:
        super().__init__()
        self.found = Pass(num_examples)
        self._names = {module: name for name, module in model.named_modules()}
        self._owners = {
            id(parameter): name
            for name, module in model.named_modules()
            for parameter in module.parameters(recurse=False)
        }
        self._own = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._stack: list[str] = [""]
        self._starts: list[int] = [0]
        self._layers: list[str] = [""]
        self._kept: dict[int, Any] = {}

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Record within this context: kernels, layers, and what is kept for the backward pass."""
        entering = module_hooks.register_module_forward_pre_hook(self._enter_layer)
        # Always: a recomputation stops in the midst of a layer once it has all it needs.
        leaving = module_hooks.register_module_forward_hook(self._leave_layer, always_call=True)
        self._mark("")
        try:
            with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda tensor: tensor), self:
                yield
        finally:
            entering.remove()
            leaving.remove()
            self._kept.clear()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        found = cost(func, args, kwargs or {}, out)
        if found is not None:
            call = Call(
                name_of(func),
                found.kind,
                self._layer(),
                _in_backward(),
                found.flops,
                found.bytes_moved,
                found.dims,
            )
            self.found.calls.append(call)
        return out

    def _layer(self) -> str:
        node = torch._C._current_autograd_node() if _in_backward() else None
        if node is None or len(self._stack) > 1:  # the latter: a forward pass computed again
            return self._stack[-1]
        number = int(node._sequence_nr())
        if number >= _ACCUMULATE:
            variable: Any = getattr(node, "variable", None)
            return str(self._owners.get(id(variable), ""))
        return self._layers[bisect.bisect_right(self._starts, number) - 1]

    def _mark(self, name: str) -> None:
        self._starts.append(int(torch._C._autograd._get_sequence_nr()))
        self._layers.append(name)

    def _enter_layer(self, module: nn.Module, _inputs: Any) -> None:
        name = self._names.get(module)
        if name is not None:
            self._stack.append(name)
            self._mark(name)
            self.found.layers.setdefault(name, Seen())

    def _leave_layer(self, module: nn.Module, _inputs: Any, output: Any) -> None:
        name = self._names.get(module)
        if name is None:
            return
        self._stack.pop()
        self._mark(self._stack[-1])
        if not _in_backward():
            leaves = torch.utils._pytree.tree_leaves(output)
            tensors = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor)]
            self.found.layers[name].output_bytes += sum(map(tensor_bytes, tensors))

    def _keep(self, tensor: torch.Tensor) -> torch.Tensor:
        """Note what autograd keeps; parameters and buffers are there anyway."""
        key = _storage(tensor)
        if key not in self._own and key not in self._kept and not _in_backward():
            storage = tensor.untyped_storage()
            self._kept[key] = storage  # held, so that no later storage gets its place
            seen = self.found.layers.setdefault(self._stack[-1], Seen())
            seen.activation_bytes += storage.nbytes()
        return tensor


def _storage(tensor: torch.Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _in_backward() -> bool:
    return int(torch._C._current_graph_task_id()) != -1
