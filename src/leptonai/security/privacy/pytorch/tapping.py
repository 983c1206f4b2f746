"""Listening to a layer's output gradient, and the record of gradients that are small enough to hold.

Legend: B examples of the pass, N rows of a flattened batch, P elements of one parameter.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from leptonai.core.errors import InputError
from leptonai.security.privacy.pytorch.choice import Chooser
from leptonai.security.privacy.pytorch.tape import Tape

Listener = Callable[..., None]
"""Called in the backward pass with the output's gradient and the tensors that were kept for it."""


class _Tap(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor, listener: Listener, *kept: Tensor) -> Tensor:
        ctx.listener = listener
        ctx.save_for_backward(*kept)
        # The output passes through as itself, not as a view: a following in-place ReLU must stay allowed. It is
        # the first input because, where it is a view, autograd takes the first for the one that was modified.
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        kept = ctx.saved_tensors  # read once: activation checkpointing recomputes them at the first time only
        ctx.listener(grad, *kept)
        return (grad, None, None, *(None for _ in kept))


class TapedRule(abc.ABC):
    """A rule for layers that keep examples apart: taped where something is trained, else the plain layer.

    Args:
        chooser: remembers how each map's gradients are computed fastest.
    """

    def __init__(self, chooser: Chooser | None = None) -> None:
        self._chooser = chooser or Chooser()

    def refusal(self, module: nn.Module) -> str | None:
        """None: these layers keep examples apart."""
        return None

    def forward(self, module: nn.Module, tape: Tape, *inputs: Any, **options: Any) -> Any:
        """What ``module(*inputs)`` gives, up to the rounding of float32."""
        if not (torch.is_grad_enabled() and trainable(*module.parameters())):
            return type(module).forward(module, *inputs, **options)
        return self._taped(module, tape, *inputs, **options)

    @abc.abstractmethod
    def _taped(self, layer: Any, tape: Tape, *inputs: Any, **options: Any) -> Any: ...


def tap(tape: Tape, output: Tensor, listener: Listener, *kept: Tensor) -> Tensor:
    """Hear the gradient of ``output``, a fresh tensor that no operation has saved for its own backward.

    Args:
        tape: whose anchor makes the backward run even where no input requires a gradient.
        output: what the layer gives, computed with detached parameters.
        listener: called once, in the backward pass, as ``listener(gradient, *kept)``.
        kept: tensors it needs; PyTorch raises an error if one was changed in place meanwhile.

    Returns:
        The tensor to use in place of ``output``.
    """
    listened: Tensor = _Tap.apply(output, tape.anchor, listener, *(each.detach() for each in kept))
    return listened


def per_example_copies(
    tape: Tape, parameter: nn.Parameter, *, key: tuple[Any, ...], num_examples: int
) -> Tensor:
    """The parameter as if each example had its own, (B, *shape); its gradient goes to the tape.

    The copies share the parameter's memory; only their gradients take B times its size.
    """
    copies = parameter.detach().expand(num_examples, *parameter.shape).requires_grad_()

    def listen(grad: Tensor) -> None:
        tape.add(PerExampleRecord((parameter,), key, (grad.detach(),)))

    copies.register_hook(listen)
    return copies


def weighted_sum(factors_B: Tensor, grads_BP: Tensor) -> Tensor:
    """``sum_i factors_i * grads_i``, (P,); rows of factor 0 are left out, whatever they hold."""
    kept_B = factors_B != 0
    if not bool(kept_B.all()):
        factors_B, grads_BP = factors_B[kept_B], grads_BP[kept_B]
    return factors_B @ grads_BP


@dataclass(slots=True)
class PerExampleRecord:
    """A record that holds the examples' gradients: for parameters with few elements, and for the fallback.

    Args:
        parameters: those covered, each once.
        key: see :class:`~leptonai.security.privacy.pytorch.tape.Record`.
        gradients: (B, *shape), one for each parameter.
    """

    parameters: tuple[nn.Parameter, ...]
    key: tuple[Any, ...]
    gradients: tuple[Tensor, ...]

    def squared_norms_B(self) -> Tensor:
        """(B,): each example's squared norm over all the parameters."""
        norms = [torch.linalg.vector_norm(each.flatten(1), dim=1).square_() for each in self.gradients]
        return torch.stack(norms).sum(dim=0)

    def per_example(self) -> tuple[Tensor, ...]:
        """The gradients themselves."""
        return self.gradients

    def add_weighted(self, factors_B: Tensor, out: tuple[Tensor, ...]) -> None:
        """Add ``sum_i factors_i * gradient_i`` to ``out``."""
        for total, grads in zip(out, self.gradients, strict=True):
            total.view(-1).add_(weighted_sum(factors_B, grads.flatten(1)))


def trainable(*parameters: nn.Parameter | None) -> tuple[nn.Parameter, ...]:
    """Those that exist and require a gradient."""
    return tuple(each for each in parameters if each is not None and each.requires_grad)


def require_examples_first(module: nn.Module, tape: Tape, tensor: Tensor) -> None:
    """Check that the first dimension of what a layer got is the examples.

    Raises:
        InputError: it has another size than the number of examples of the pass.
    """
    found = tensor.shape[0] if tensor.dim() else 0
    if found != tape.num_examples:
        raise InputError(
            f"{type(module).__name__}: expected the {tape.num_examples} examples of the pass in the first "
            f"dimension of its input, found shape {tuple(tensor.shape)}",
            hint="give every layer its input as (examples, ...); an input that all examples share, such as "
            "positions, is expanded first: torch.arange(T).expand(B, T)",
        )


def detached(parameter: nn.Parameter | None) -> Tensor | None:
    """The parameter's values without its history."""
    return None if parameter is None else parameter.detach()
