"""What one forward and backward pass leaves behind, layer by layer, for per-example gradients.

B is the number of examples of the pass; every tensor a rule sees has the examples in its first dimension.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn


class Record(Protocol):
    """One use of a layer in a pass: its inputs and output gradients, and what can be computed from them.

    Gradients are those of the *sum* of the examples' losses, so the gradient of one example does not depend on
    how many others there are.

    Attributes:
        parameters: the trainable parameters it covers, each once.
        key: equal for uses whose best way to compute is the same: layer type, shapes, options.
    """

    parameters: tuple[nn.Parameter, ...]
    key: tuple[Any, ...]

    def squared_norms_B(self) -> Tensor:
        """(B,) float32: each example's squared gradient norm, summed over ``parameters``."""
        ...

    def per_example(self) -> tuple[Tensor, ...]:
        """The examples' gradients themselves, (B, *shape), one for each parameter."""
        ...

    def add_weighted(self, factors_B: Tensor, out: tuple[Tensor, ...]) -> None:
        """Add ``sum_i factors_i * gradient_i`` to ``out``, one float32 tensor (contiguous view) a parameter.

        A factor of 0 adds nothing, whatever the example's gradient (also NaN or infinity).
        """
        ...


class Tape:
    """Collects records while the backward pass runs.

    Attributes:
        anchor: a scalar that requires grad; a layer's autograd function takes it as an input so that its backward
            runs even where no input requires a gradient.
        records: in the order of the backward pass.
        num_examples: B of the pass under way.
    """

    def __init__(self) -> None:
        self.anchor = torch.zeros((), requires_grad=True)
        self.records: list[Record] = []
        self.num_examples = 0

    def add(self, record: Record) -> None:
        """Keep a record; called from a layer's backward."""
        self.records.append(record)

    def clear(self) -> None:
        """Forget all."""
        self.records.clear()


class Rule(Protocol):
    """How layers of one type take part."""

    def forward(self, module: nn.Module, tape: Tape, *inputs: Any, **options: Any) -> Any:
        """What ``module(*inputs)`` gives, bit for bit; in its backward pass it adds to the tape."""
        ...

    def refusal(self, module: nn.Module) -> str | None:
        """Why this module cannot be trained privately, in one sentence with the substitute; None: it can."""
        ...
