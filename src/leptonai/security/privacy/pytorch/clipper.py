"""The sum of clipped per-example gradients of a model, from one forward and one backward pass.

B is the number of examples of a pass, P of trainable parameters, L of layers that have any.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from leptonai.core.errors import InputError
from leptonai.security.privacy.pytorch.exact import ExactSum
from leptonai.security.privacy.pytorch.installation import default_rules, find_sites, installed
from leptonai.security.privacy.pytorch.layers import Groups
from leptonai.security.privacy.pytorch.tape import Rule, Tape

_MARGIN = 1.0 - 2.0**-20
"""Norms are computed in float32: cut a little below the bound, so that rounding cannot exceed it."""


@dataclass(frozen=True, slots=True)
class Slot:
    """Where a parameter's gradient lies in the flat sum.

    Args:
        name: as in ``model.named_parameters()``.
        parameter: itself.
        place: of ``sum_P``.
    """

    name: str
    parameter: nn.Parameter
    place: slice


class Clipper:
    """Sums per-example gradients of which none has a norm above ``clip``.

    Outside :meth:`add` the model is an ordinary one. Which parameters are trainable is read once, here.

    Args:
        model: its modules' inputs have the examples in the first dimension.
        clip: L2 norm that each example's gradient is cut to, > 0; may be set between passes.
        clipping: ``flat`` cuts the gradient as a whole, ``per_layer`` each of L layers' to clip / sqrt(L).
        rules: how layers of a type take part; None: :func:`default_rules`.
        exact: sum in whole numbers, in :attr:`exact` instead of :attr:`sum_P`.

    Attributes:
        sum_P: float32 sum of clipped gradients since :meth:`zero`.
        layout: where each trainable parameter lies in it.
        num_within: examples since :meth:`zero` whose norm was at most ``clip``.
        last_norms_B: norms of the last pass; not finite where a gradient was not. Private data.

    Raises:
        InputError: a layer cannot be trained privately, nothing is trainable, or ``clip`` is out of range.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        clip: float,
        clipping: Literal["flat", "per_layer"] = "flat",
        rules: Mapping[type, Rule] | None = None,
        exact: bool = False,
    ) -> None:
        if clipping not in ("flat", "per_layer"):
            raise InputError(f"clipping: expected flat or per_layer, found {clipping!r}")
        self.clip = clip
        self._clipping = clipping
        self._sites = find_sites(model, default_rules() if rules is None else rules)
        self.layout = _layout(model)
        num_parameters = self.layout[-1].place.stop
        self.sum_P = torch.zeros(num_parameters)
        self._views = {
            id(slot.parameter): self.sum_P[slot.place].view(slot.parameter.shape) for slot in self.layout
        }
        self._groups = Groups([site.parameters for site in self._sites])
        self._exact = ExactSum(self.layout, clip=clip) if exact else None
        self._tape = Tape()
        self._removed = False
        self.num_within = 0
        self.last_norms_B = torch.zeros(0)

    @property
    def clip(self) -> float:
        """The bound on an example's norm."""
        return self._clip

    @clip.setter
    def clip(self, value: float) -> None:
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"clip: expected a number > 0, found {value!r}")
        self._clip = float(value)

    @property
    def exact(self) -> ExactSum:
        """The sum in whole numbers."""
        assert self._exact is not None, "made with exact=True"
        return self._exact

    def zero(self) -> None:
        """Forget all examples so far."""
        if self._exact is not None:
            self._exact.zero(self._clip)
        self.sum_P.zero_()
        self.num_within = 0

    def remove(self) -> None:
        """Let go of the model; nothing can be added any more."""
        self._removed = True

    def add(self, loss: Callable[[], Tensor], num_examples: int) -> float:
        """Add the clipped gradients of some examples; one whose gradient is not finite adds 0.

        Args:
            loss: computes the mean of the examples' losses through the model, as a scalar.
            num_examples: how many, >= 0; of none, ``loss`` is not called.

        Returns:
            The mean loss; of no examples 0.0. Private data.

        Raises:
            InputError: a parameter was used other than by its layer, or a layer's input does not have the
                examples in its first dimension.
        """
        if self._removed:
            raise InputError("this clipper was removed from its model", hint="make a new Clipper")
        if num_examples == 0:
            return 0.0
        tape = self._tape
        kept = [slot.parameter.grad for slot in self.layout]
        for slot in self.layout:
            slot.parameter.grad = None
        try:
            tape.num_examples = num_examples
            with installed(self._sites, tape), torch.enable_grad():
                value = loss()
                _check_loss(value)
                value.backward(gradient=torch.full_like(value, float(num_examples)))
            self._check_plain()
            self._add_records(num_examples)
            return float(value.detach())
        finally:
            tape.clear()
            tape.num_examples = 0
            for slot, grad in zip(self.layout, kept, strict=True):
                slot.parameter.grad = grad

    def _check_plain(self) -> None:
        for slot in self.layout:
            if slot.parameter.grad is not None:
                raise InputError(
                    f"{slot.name}: used outside its layer, where examples' gradients cannot be told apart",
                    hint="call the layer itself, or freeze the parameter",
                )

    def _add_records(self, num_examples: int) -> None:
        by_layer = self._groups.squared_norms(self._tape.records, num_examples)
        squares_B = torch.stack(list(by_layer.values())).sum(0) if by_layer else torch.zeros(num_examples)
        self.last_norms_B = squares_B.sqrt()
        self.num_within += int((self.last_norms_B <= self._clip).sum())
        finite_B = torch.isfinite(self.last_norms_B)
        whole_B = self._factors_B(self.last_norms_B, self._clip, finite_B)
        share = self._clip / math.sqrt(self._groups.num_layers)
        every_B = []
        for record in self._tape.records:
            factors_B = whole_B
            if self._clipping == "per_layer":
                layer = self._groups.layer_of(record)
                factors_B = self._factors_B(by_layer[layer].sqrt(), share, finite_B)
            every_B.append(factors_B)
        if self._exact is not None:
            self._exact.add(self._tape.records, every_B, num_examples)
            return
        while self._tape.records:  # each is let go of once it is added: together they hold most of the memory
            record, factors_B = self._tape.records.pop(), every_B.pop()
            record.add_weighted(factors_B, tuple(self._views[id(each)] for each in record.parameters))

    @staticmethod
    def _factors_B(norms_B: Tensor, bound: float, finite_B: Tensor) -> Tensor:
        return torch.where(finite_B, (bound * _MARGIN / norms_B).clamp(max=1.0), 0.0)


def _check_loss(value: Tensor) -> None:
    if value.dim() != 0:
        raise InputError(f"expected the loss to be a scalar, found shape {tuple(value.shape)}")
    if not value.requires_grad:
        raise InputError("the loss does not depend on any trainable layer of the model")


def _layout(model: nn.Module) -> tuple[Slot, ...]:
    slots: list[Slot] = []
    start = 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.dtype != torch.float32 or parameter.device.type != "cpu":
            raise InputError(
                f"{name}: expected float32 on the CPU, found {parameter.dtype} on {parameter.device}"
            )
        slots.append(Slot(name, parameter, slice(start, start + parameter.numel())))
        start += parameter.numel()
    if not slots:
        raise InputError("the model has no trainable parameters")
    return tuple(slots)
