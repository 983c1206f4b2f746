"""How much work a job is: the numbers a plan needs, found without training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

from leptonai.core.errors import InputError
from leptonai.core.values import value_from_json, value_to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWork:
    """One layer's share of the work.

    Args:
        name: path of the layer in the model, such as ``features.0``.
        kind: the framework's name for it, such as ``Conv2d``.
        num_parameters: trainable numbers it holds, >= 0.
        flops: forward and backward floating-point operations per example, >= 0.
        output_bytes: bytes of its output per example, >= 0.
    """

    name: str
    kind: str
    num_parameters: int
    flops: float
    output_bytes: int

    def __post_init__(self) -> None:
        _check_not_negative(self, ("num_parameters", "flops", "output_bytes"))


OperationKind = Literal[
    "matmul",
    "convolution",
    "attention",
    "recurrence",
    "elementwise",
    "reduction",
    "copy",
    "gather",
    "update",
    "other",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One kind of call that a step makes, in one layer; quantities are (fixed, per example): ``q[0] + q[1] * batch``.

    Args:
        kind: what sort of kernel it is.
        layer: path of the layer it belongs to; empty: none.
        backward: whether it belongs to the backward pass.
        calls: how many such calls one pass makes, >= 1; the quantities are of one call.
        flops: floating-point operations.
        bytes_moved: bytes read and written, each tensor once.
        dims: sizes that decide its speed: of a matmul (batch, m, k, n); of a convolution (images, input channels,
            output channels, kernel positions, output positions, groups); empty: only bytes do.
    """

    kind: OperationKind
    layer: str = ""
    backward: bool = False
    calls: int = 1
    flops: tuple[float, float] = (0.0, 0.0)
    bytes_moved: tuple[float, float] = (0.0, 0.0)
    dims: tuple[tuple[float, float], ...] = ()

    def at(self, quantity: tuple[float, float], batch: int) -> float:
        """A quantity for this many examples."""
        return quantity[0] + quantity[1] * batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """The work of a whole job.

    Args:
        num_parameters: trainable numbers in the model, >= 0.
        parameter_bytes: bytes of all of them together, which is also what one full gradient takes.
        flops_per_example: forward and backward floating-point operations for one example, >= 0.
        activation_bytes_per_example: bytes kept from the forward pass for the backward one, >= 0.
        num_examples: training examples, >= 1.
        global_batch_size: examples in one optimiser step over all workers, >= 1.
        steps_per_epoch: optimiser steps in one pass over the examples, >= 1.
        total_steps: optimiser steps in the whole run, >= 1.
        layers: the layers, in the order they run; may be empty when nobody looked inside.
        operations: calls of a forward and a backward pass; may be empty when nobody looked inside.
        num_tensors: trainable tensors, >= 0.
        input_bytes_per_example: bytes of one prepared example, >= 0.
        optimizer_states: numbers the optimiser keeps for each parameter: 0 plain SGD, 1 momentum, 2 Adam.

    Raises:
        InputError: a value lies outside its range.
    """

    num_parameters: int
    parameter_bytes: int
    flops_per_example: float
    activation_bytes_per_example: int
    num_examples: int
    global_batch_size: int
    steps_per_epoch: int
    total_steps: int
    layers: tuple[LayerWork, ...] = ()
    operations: tuple[Operation, ...] = ()
    num_tensors: int = 0
    input_bytes_per_example: int = 0
    optimizer_states: float = 1.0

    def __post_init__(self) -> None:
        names = ("num_parameters", "parameter_bytes", "flops_per_example", "activation_bytes_per_example")
        _check_not_negative(self, names)
        for name in ("num_examples", "global_batch_size", "steps_per_epoch", "total_steps"):
            if getattr(self, name) < 1:
                raise InputError(f"Workload: expected {name} >= 1, found {getattr(self, name)}")

    @property
    def flops_per_step(self) -> float:
        """Floating-point operations of one optimiser step, over all workers."""
        return self.flops_per_example * self.global_batch_size

    def to_json(self) -> dict[str, Any]:
        """The workload as JSON-ready values; :meth:`from_json` reads them back."""
        values: dict[str, Any] = value_to_json(self)
        return values

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Inverse of :meth:`to_json`.

        Raises:
            InputError: a value is missing or has the wrong type.
        """
        try:
            return value_from_json(cls, values)
        except InputError as error:
            raise InputError(f"not a workload: {error.message}", hint=error.hint) from error


def _check_not_negative(value: LayerWork | Workload, names: tuple[str, ...]) -> None:
    for name in names:
        found = getattr(value, name)
        if not (found >= 0 and math.isfinite(found)):
            raise InputError(f"{type(value).__name__}: expected {name} >= 0, found {found}")
