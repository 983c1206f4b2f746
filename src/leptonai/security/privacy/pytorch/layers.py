"""Which records belong to one layer, and what a layer's per-example norms are.

A parameter may be used several times in a pass (tied weights, a layer called twice). Its gradient is the sum over
the uses, so their gradients are added before a norm is taken.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from leptonai.security.privacy.pytorch.tape import Record


class Groups:
    """Layers: sets of parameters, merged where two modules share one.

    Args:
        members: the trainable parameters of each module.

    Attributes:
        num_layers: L, whatever a pass uses of them.
    """

    def __init__(self, members: Sequence[Sequence[nn.Parameter]]) -> None:
        self._layer_of: dict[int, int] = {}
        for number, parameters in enumerate(members):
            joined = {self._layer_of[id(each)] for each in parameters if id(each) in self._layer_of}
            for key, layer in self._layer_of.items():
                if layer in joined:
                    self._layer_of[key] = number
            for each in parameters:
                self._layer_of[id(each)] = number
        self.num_layers = len(set(self._layer_of.values()))

    def layer_of(self, record: Record) -> int:
        """Which layer a record belongs to."""
        return self._layer_of[id(record.parameters[0])]

    def squared_norms(self, records: Sequence[Record], num_examples: int) -> dict[int, Tensor]:
        """Squared norm of each example's gradient, (B,), for each layer that was used."""
        uses: dict[int, list[Record]] = {}
        for record in records:
            uses.setdefault(self.layer_of(record), []).append(record)
        return {layer: _squared_norms_B(found, num_examples) for layer, found in uses.items()}


def _squared_norms_B(records: Sequence[Record], num_examples: int) -> Tensor:
    total_B = torch.zeros(num_examples)
    for apart, parameters in _apart(records):
        if apart is not None:
            total_B += apart.squared_norms_B()
        else:
            total_B += _of_sums_B(parameters)
    return total_B


def _apart(records: Sequence[Record]) -> list[tuple[Record | None, list[Record]]]:
    """Records that share no parameter with another, one by one; all others together."""
    uses: dict[int, int] = {}
    for record in records:
        for each in record.parameters:
            uses[id(each)] = uses.get(id(each), 0) + 1
    alone = [record for record in records if all(uses[id(each)] == 1 for each in record.parameters)]
    shared = [record for record in records if not any(record is each for each in alone)]
    found: list[tuple[Record | None, list[Record]]] = [(record, []) for record in alone]
    return [*found, (None, shared)] if shared else found


def _of_sums_B(records: Sequence[Record]) -> Tensor:
    """Squared norms of the sums of what the records say of each parameter."""
    sums: dict[int, Tensor] = {}
    for record in records:
        for parameter, gradient in zip(record.parameters, record.per_example(), strict=True):
            key = id(parameter)
            sums[key] = sums[key] + gradient if key in sums else gradient
    total_B = torch.zeros(next(iter(sums.values())).shape[0])
    for gradient in sums.values():
        total_B += torch.linalg.vector_norm(gradient.flatten(1), dim=1).square()
    return total_B
