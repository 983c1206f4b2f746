"""The rule of any other module that owns trainable parameters: every example with its own copy of them.

Ordinary autograd then gives the examples' gradients. Correct for whatever treats examples alike, and slow: gradients
take B times the parameters' memory. Legend: B examples.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree

from leptonai.core.errors import InputError
from leptonai.security.privacy.pytorch.tape import Tape
from leptonai.security.privacy.pytorch.tapping import per_example_copies, require_examples_first

_CANNOT = (RuntimeError, ValueError, TypeError, IndexError)
"""What PyTorch raises where a module cannot be vectorised, or does not take a batch of one."""


class FallbackRule:
    """Runs a module, with all that lies below it, on each example by itself: vectorised, or else in a loop.

    The module sees batches of one example, (1, ...), and must give tensors with the examples first.
    """

    def __init__(self) -> None:
        self._looped: set[int] = set()

    def refusal(self, module: nn.Module) -> str | None:
        """None: whether it works is known once it runs."""
        return None

    def forward(self, module: nn.Module, tape: Tape, *inputs: Any, **options: Any) -> Any:
        """What ``module(*inputs)`` gives, each example computed by itself.

        Raises:
            InputError: an input does not have the examples first, the module cannot run on single examples, or it
                changes its buffers.
        """
        parameters = {name: each for name, each in module.named_parameters() if each.requires_grad}
        if not (torch.is_grad_enabled() and parameters):
            return type(module).forward(module, *inputs, **options)
        leaves, structure = pytree.tree_flatten((inputs, options))
        tensors = {place: leaf for place, leaf in enumerate(leaves) if isinstance(leaf, Tensor)}
        if not tensors:
            raise InputError(
                f"{type(module).__name__}: has parameters of its own but no tensor among its inputs, so that its "
                "result belongs to no example",
                hint="give it a tensor with the examples first, or freeze its parameters",
            )
        for each in tensors.values():
            require_examples_first(module, tape, each)
        copies = {
            name: per_example_copies(
                tape, each, key=("fallback", type(module).__name__, name), num_examples=tape.num_examples
            )
            for name, each in parameters.items()
        }
        single = functools.partial(_run_single, _Plain(module), leaves, structure)
        return self._run(module, single, copies, tensors)

    def _run(
        self,
        module: nn.Module,
        single: Callable[..., Any],
        copies: dict[str, Tensor],
        tensors: dict[int, Tensor],
    ) -> Any:
        buffers = _buffers(module)
        if id(module) not in self._looped:
            try:
                # The fused attention of the CPU cannot be vectorised, plain matrix products can.
                with sdpa_kernel(SDPBackend.MATH):
                    found = vmap(single, randomness="different")(copies, tensors)
            except _CANNOT:
                self._looped.add(id(module))
            else:
                _check_buffers(module, buffers)
                return found
        try:
            found = _loop(single, copies, tensors)
        except _CANNOT as error:
            raise InputError(
                f"{type(module).__name__}: cannot run on single examples ({type(error).__name__}: {error})",
                hint="it must take inputs (examples, ...) with any number of examples and give tensors alike; "
                "or move its parameters into layers such as nn.Linear",
            ) from error
        _check_buffers(module, buffers)
        return found


class _Plain(nn.Module):
    """A module by its class's own forward: the one set on the instance leads back to the rule."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return type(self.module).forward(self.module, *inputs, **options)


def _run_single(
    plain: nn.Module,
    leaves: list[Any],
    structure: Any,
    copies: Mapping[str, Tensor],
    tensors: Mapping[int, Tensor],
) -> Any:
    """One example through the module, given its copy of the parameters; results without their first dimension."""
    mine = [tensors[place][None] if place in tensors else leaf for place, leaf in enumerate(leaves)]
    inputs, options = pytree.tree_unflatten(mine, structure)
    found = functional_call(plain, {f"module.{name}": each for name, each in copies.items()}, inputs, options)
    return pytree.tree_map(_without_first, found)


def _without_first(result: Any) -> Any:
    if not isinstance(result, Tensor):
        return result
    if result.dim() == 0 or result.shape[0] != 1:
        raise ValueError(f"of one example it gives shape {tuple(result.shape)}, not (1, ...)")
    return result[0]


def _loop(single: Callable[..., Any], copies: dict[str, Tensor], tensors: dict[int, Tensor]) -> Any:
    """The same without vectorising."""
    apart = {name: each.unbind(0) for name, each in copies.items()}
    inputs = {place: each.unbind(0) for place, each in tensors.items()}
    num_examples = len(next(iter(inputs.values())))
    found = [
        single(
            {name: each[i] for name, each in apart.items()},
            {place: each[i] for place, each in inputs.items()},
        )
        for i in range(num_examples)
    ]
    flat = [pytree.tree_flatten(each) for each in found]
    joined = [
        torch.stack(list(column)) if isinstance(column[0], Tensor) else column[0]
        for column in zip(*(leaves for leaves, _ in flat), strict=True)
    ]
    return pytree.tree_unflatten(joined, flat[0][1])


def _buffers(module: nn.Module) -> dict[str, tuple[int, int]]:
    return {name: (id(each), each._version) for name, each in module.named_buffers()}


def _check_buffers(module: nn.Module, before: dict[str, tuple[int, int]]) -> None:
    after = _buffers(module)
    changed = [name for name in after if after[name] != before.get(name)]
    if changed:
        raise InputError(
            f"{type(module).__name__}: its buffer {changed[0]} changes with the data, without noise",
            hint="compute it from each example alone, or fix it before training",
        )
