"""Cuts a chain of layers into pipeline stages so that the slowest stage is as fast as can be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leptonai.compute.workload import Workload
from leptonai.core.errors import InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """A chain in stages.

    Args:
        starts: the first layer of each stage, rising from 0.
        costs: of each stage, in the unit of what was given, transfers among them.
    """

    starts: tuple[int, ...]
    costs: tuple[float, ...]

    @property
    def slowest(self) -> float:
        """Cost of the slowest stage: what one micro-batch costs a full pipeline."""
        return max(self.costs)

    def stage_of(self, layer: int) -> int:
        """The stage that holds a layer."""
        return sum(start <= layer for start in self.starts) - 1


def cut_chain(
    costs: Sequence[float],
    num_stages: int,
    *,
    transfer_costs: Sequence[float] = (),
    sizes: Sequence[float] = (),
    size_limit: float = math.inf,
) -> Cut:
    """Cut a chain where the slowest stage costs least, exactly; of equal cuts, the one with the earliest cuts.

    Args:
        costs: of each layer, >= 0.
        num_stages: from 1 to the number of layers; each stage holds at least one.
        transfer_costs: of a cut after each layer, >= 0, borne by the stage before it and the one behind;
            empty: none. The last layer's counts for nothing.
        sizes: of each layer, >= 0, such as bytes; empty: none.
        size_limit: the most that one stage may hold.

    Raises:
        InputError: a value lies outside its range, or no cut keeps every stage within ``size_limit``.

    Source: the dynamic program of Narayanan et al., PipeDream, SOSP 2019, section 3.1, without replication.

    >>> cut_chain([1, 2, 3, 4, 5], 2).starts
    (0, 3)
    """
    costs_L, transfers_L, sizes_L = _checked(costs, num_stages, transfer_costs, sizes)
    stages_LL = _stage_costs(costs_L, transfers_L)
    sums = np.concatenate(([0.0], np.cumsum(sizes_L)))
    # A little more than the limit is a rounding error of the sums, not a stage too large.
    stages_LL[(sums[None, :] - sums[:, None]) > size_limit * (1 + 1e-12)] = np.inf
    ends = _best_cut(stages_LL, num_stages)
    if not ends:
        least = _best_cut(_stage_costs(sizes_L, np.zeros_like(sizes_L)), num_stages)
        need = max(float(sums[end] - sums[start]) for start, end in zip((0, *least[:-1]), least, strict=True))
        raise InputError(
            f"no cut into {num_stages} stages keeps each within {size_limit:g}",
            hint=f"the smallest limit that does is {need:g}",
        )
    starts = (0, *ends[:-1])
    return Cut(
        starts=starts,
        costs=tuple(float(stages_LL[start, end]) for start, end in zip(starts, ends, strict=True)),
    )


def cut_workload(
    work: Workload,
    num_stages: int,
    *,
    flops_per_second: float,
    bytes_per_second: float = math.inf,
    parameter_limit: float = math.inf,
) -> Cut:
    """Cut the layers of a traced model, in seconds an example.

    A cut sends the output of the layer before it forward and a gradient of that size back.

    Args:
        num_stages: from 1 to the number of layers.
        flops_per_second: of one stage, > 0.
        bytes_per_second: between stages, > 0.
        parameter_limit: the most trainable numbers that one stage may hold.

    Raises:
        InputError: a value lies outside its range, the workload names no layers, or no cut fits.
    """
    if not work.layers:
        raise InputError("the workload names no layers", hint="trace the model first")
    if not (flops_per_second > 0 and bytes_per_second > 0):
        raise InputError(f"expected rates > 0, found {flops_per_second} and {bytes_per_second}")
    return cut_chain(
        [layer.flops / flops_per_second for layer in work.layers],
        num_stages,
        transfer_costs=[2 * layer.output_bytes / bytes_per_second for layer in work.layers],
        sizes=[layer.num_parameters for layer in work.layers],
        size_limit=parameter_limit,
    )


def _checked(
    costs: Sequence[float], num_stages: int, transfer_costs: Sequence[float], sizes: Sequence[float]
) -> tuple[Floats, Floats, Floats]:
    given = {"costs": costs, "transfer_costs": transfer_costs, "sizes": sizes}
    for name, values in given.items():
        if len(values) not in (0, len(costs)) or not all(0 <= value < math.inf for value in values):
            raise InputError(f"pipeline: expected {name} >= 0, one a layer ({len(costs)})")
    if not 1 <= num_stages <= len(costs):
        raise InputError(
            f"expected from 1 to {len(costs)} pipeline stages, one a layer at most, found {num_stages}"
        )
    none = np.zeros(len(costs))
    return (
        np.asarray(costs, np.float64),
        np.asarray(transfer_costs, np.float64) if len(transfer_costs) else none,
        np.asarray(sizes, np.float64) if len(sizes) else none,
    )


def _stage_costs(costs_L: Floats, transfers_L: Floats) -> Floats:
    """Cost of the stage from layer i up to, without, layer j, at [i, j]; infinite where it holds no layer."""
    sums = np.concatenate(([0.0], np.cumsum(costs_L)))
    received = np.concatenate(([0.0], transfers_L))
    sent = received.copy()
    sent[-1] = 0.0  # nothing follows the last layer
    stages_LL: Floats = sums[None, :] - sums[:, None] + received[:, None] + sent[None, :]
    stages_LL[np.tril_indices(len(sums))] = np.inf
    return stages_LL


def _best_cut(stages_LL: Floats, num_stages: int) -> tuple[int, ...]:
    """Where each stage ends in the cut whose dearest stage is cheapest; empty: there is none."""
    best_L = np.full(len(stages_LL), np.inf)
    best_L[0] = 0.0
    choices: list[NDArray[np.intp]] = []
    for _ in range(num_stages):
        slowest_LL = np.maximum(best_L[:, None], stages_LL)
        choices.append(slowest_LL.argmin(axis=0))
        best_L = slowest_LL.min(axis=0)
    if not np.isfinite(best_L[-1]):
        return ()
    ends = [len(stages_LL) - 1]
    for choice in reversed(choices[1:]):
        ends.append(int(choice[ends[-1]]))
    return tuple(reversed(ends))
