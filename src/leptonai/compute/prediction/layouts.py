"""Ways to lay one training run over devices, as columns: a million of them cost no more objects than one."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError

Ints = NDArray[np.int32]
Floats = NDArray[np.float64]

RECOMPUTE = ("none", "selective", "full")
"""What is computed again in the backward pass: nothing, attention's softmax part, or the whole layer."""
CONSISTENCY = ("bsp", "ssp", "asp", "local_sgd")
"""When replicas see each other's updates: every step, boundedly late, any time, every few steps."""
PLACEMENTS = ("tensor data pipeline", "tensor pipeline data", "data tensor pipeline",
              "data pipeline tensor", "pipeline tensor data", "pipeline data tensor")  # fmt: skip
"""Order of the axes over device numbers, nearest neighbours first; device numbers fill node after node."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One layout.

    Args:
        tensor: devices that share each layer's matrices, >= 1.
        data: replicas of the model, >= 1.
        pipeline: stages, >= 1.
        fsdp: devices of a data group that divide states among them; divides ``data``; 1: none do.
        zero: what they divide: 0 nothing, 1 optimiser states, 2 gradients too, 3 parameters too. 0 iff ``fsdp`` is 1.
        micro_batch: examples in one pass of one replica, >= 1.
        interleave: pieces of the model on each stage, >= 1; more than 1 only with a pipeline.
        recompute: one of :data:`RECOMPUTE`.
        sequence_parallel: whether tensor groups divide normalisations and dropouts along the sequence.
        consistency: one of :data:`CONSISTENCY`.
        placement: one of :data:`PLACEMENTS`.
    """

    tensor: int = 1
    data: int = 1
    pipeline: int = 1
    fsdp: int = 1
    zero: int = 0
    micro_batch: int = 1
    interleave: int = 1
    recompute: str = "none"
    sequence_parallel: bool = False
    consistency: str = "bsp"
    placement: str = PLACEMENTS[0]

    @property
    def num_devices(self) -> int:
        """Devices it takes."""
        return self.tensor * self.data * self.pipeline


@dataclass(frozen=True, slots=True, kw_only=True)
class Layouts:
    """N layouts, a column for each choice; words are kept as places in their lists."""

    tensor: Ints
    data: Ints
    pipeline: Ints
    fsdp: Ints
    zero: Ints
    micro_batch: Ints
    interleave: Ints
    recompute: Ints
    sequence_parallel: Ints
    consistency: Ints
    placement: Ints

    def __len__(self) -> int:
        return len(self.tensor)

    @property
    def num_devices(self) -> Ints:
        """Devices each takes."""
        return self.tensor * self.data * self.pipeline

    def take(self, which: Any) -> Self:
        """Some of them, by an index array, a mask or a slice."""
        return type(self)(**{name: getattr(self, name)[which] for name in COLUMNS})

    def row(self, index: int) -> Layout:
        """One of them."""
        values = {name: int(getattr(self, name)[index]) for name in COLUMNS}
        return Layout(
            **{
                **values,
                "recompute": RECOMPUTE[values["recompute"]],
                "consistency": CONSISTENCY[values["consistency"]],
                "placement": PLACEMENTS[values["placement"]],
                "sequence_parallel": bool(values["sequence_parallel"]),
            }  # type: ignore[arg-type]
        )

    @classmethod
    def of(cls, rows: Sequence[Layout]) -> Self:
        """Columns of these rows.

        Raises:
            InputError: a word is not in its list.
        """
        lists = {"recompute": RECOMPUTE, "consistency": CONSISTENCY, "placement": PLACEMENTS}
        columns: dict[str, Ints] = {}
        for name in COLUMNS:
            words = lists.get(name)
            values = [getattr(row, name) for row in rows]
            if words is not None:
                for value in values:
                    if value not in words:
                        raise InputError(
                            f"Layout: unknown {name} {value!r}", hint=f"one of: {', '.join(words)}"
                        )
                values = [words.index(value) for value in values]
            columns[name] = np.array(values, np.int32)
        return cls(**columns)


COLUMNS = tuple(field.name for field in dataclasses.fields(Layout))
