"""Families of layouts by names that people know, and why each lost.

Families overlap: a layout with a pipeline and full recomputation is in both. What decides is tracked for all of them
while chunks pass; nothing is looked at twice.

Shapes: F families, N rows, C costed rows.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from leptonai.compute.prediction.layouts import CONSISTENCY, PLACEMENTS, RECOMPUTE, Floats, Layout, Layouts
from leptonai.compute.search.answer import Choice, Rejected, choice_of, describe, format_cost
from leptonai.compute.search.rows import Goal, Rows
from leptonai.core.units import format_bytes, format_seconds

Masks = NDArray[np.bool_]

FAMILIES = (
    "one device", "data parallel alone", "tensor parallel in nodes", "tensor parallel across nodes", "pipeline",
    "interleaved", "fsdp (zero 1)", "fsdp (zero 2)", "fsdp (zero 3)", "sequence parallel", "no recompute",
    "selective recompute", "full recompute", "bounded staleness", "asynchronous", "local steps", "fewer devices",
)  # fmt: skip
"""Names of families; *fewer devices* is fewer than the most that the space allows."""

_INNER_AXES = {
    axis: np.array([axis in word.split("tensor")[0].split() for word in PLACEMENTS])
    for axis in ("data", "pipeline")
}
"""Whether each placement puts that axis nearer than the tensor one."""


def tensor_in_node(layouts: Layouts, devices_per_node: int) -> Masks:
    """Whether every tensor group lies in one node, one answer a row.

    A group spans ``tensor`` devices, as many apart as the axes inside it take; all stay in their nodes if blocks of
    that span tile a node.
    """
    span = layouts.tensor.copy()
    for axis, inner in _INNER_AXES.items():
        span *= np.where(inner[layouts.placement], getattr(layouts, axis), 1)
    in_node: Masks = (devices_per_node % span == 0) | (layouts.num_devices <= devices_per_node)
    return in_node


def members(layouts: Layouts, *, devices_per_node: int, most_devices: int) -> Masks:
    """Which rows belong to which family, of shape (F, N)."""
    split, staged = layouts.tensor > 1, layouts.pipeline > 1
    alone = ~(split | staged)
    in_node = tensor_in_node(layouts, devices_per_node)
    replicated = layouts.data > 1
    return np.stack(
        [
            alone & ~replicated,
            alone & replicated & (layouts.zero == 0),
            split & in_node,
            split & ~in_node,
            staged,
            layouts.interleave > 1,
            *(layouts.zero == level for level in (1, 2, 3)),
            layouts.sequence_parallel > 0,
            *(layouts.recompute == place for place in range(len(RECOMPUTE))),
            *(layouts.consistency == CONSISTENCY.index(mode) for mode in ("ssp", "asp", "local_sgd")),
            layouts.num_devices < most_devices,
        ]
    )


@dataclass(slots=True, kw_only=True)
class _Record:
    """What has been seen of one family."""

    num_layouts: int = 0
    num_fitting: int = 0
    smallest_memory_bytes: float = np.inf
    smallest: Layout | None = None
    best: Choice | None = None
    least_beyond: dict[Goal, float] = field(default_factory=dict)
    why_not: str = ""


class Families:
    """Keeps, for every family, its smallest layout and its best one.

    Args:
        goal: what is made small.
        devices_per_node: >= 1.
        most_devices: the most devices that a layout may take.
    """

    def __init__(self, goal: Goal, *, devices_per_node: int, most_devices: int) -> None:
        self._goal: Goal = goal
        self._devices_per_node = devices_per_node
        self._most_devices = most_devices
        self._records = [_Record() for _ in FAMILIES]

    def see(self, layouts: Layouts, memory_N: Floats, fits_N: Masks) -> Masks:
        """Note a chunk before it is costed; returns which rows that fit belong to which family, of shape (F, C)."""
        masks_FN = members(layouts, devices_per_node=self._devices_per_node, most_devices=self._most_devices)
        masks_FC = masks_FN[:, fits_N]
        sizes_F, fitting_F = masks_FN.sum(axis=1), masks_FC.sum(axis=1)
        for record, mask_N, size, fitting in zip(self._records, masks_FN, sizes_F, fitting_F, strict=True):
            if not size:
                continue
            record.num_layouts += int(size)
            record.num_fitting += int(fitting)
            place = int(np.where(mask_N, memory_N, np.inf).argmin())
            if memory_N[place] < record.smallest_memory_bytes:
                record.smallest_memory_bytes = float(memory_N[place])
                record.smallest = layouts.row(place)
        return masks_FC

    def see_costed(self, masks_FC: Masks, rows: Rows, runs_C: Masks, beyond: dict[Goal, Masks]) -> None:
        """Note costed rows: which can run, and which lie beyond which bound (``beyond``: bound's goal to rows)."""
        usable_C = runs_C.copy()
        for mask_C in beyond.values():
            usable_C &= ~mask_C
        cost_C = rows.cost(self._goal)
        for record, mask_C in zip(self._records, masks_FC, strict=True):
            if not mask_C.any():
                continue
            rival_C = mask_C & usable_C
            if rival_C.any():
                place = _best_place(rows, np.where(rival_C, cost_C, np.inf))
                rival = choice_of(rows, place)
                if record.best is None or _key(rival, self._goal) < _key(record.best, self._goal):
                    record.best = rival
            elif record.best is None:
                self._note_refusal(record, mask_C, rows, runs_C, beyond)

    def _note_refusal(
        self, record: _Record, mask_C: Masks, rows: Rows, runs_C: Masks, beyond: dict[Goal, Masks]
    ) -> None:
        """Why no row of a family that fits can be used: the least cost over a bound, or the predictor's words."""
        running_C = mask_C & runs_C
        if running_C.any():
            for name in beyond:
                least = float(rows.cost(name)[running_C].min())
                record.least_beyond[name] = min(least, record.least_beyond.get(name, np.inf))
        elif not record.why_not:
            first = int(rows.predictions.reasons[mask_C][0])
            record.why_not = rows.predictions.why_not[first - 1]

    def smallest(self) -> tuple[float, Layout]:
        """Memory and layout of the smallest row seen; there must be one."""
        record = min(self._records, key=lambda each: each.smallest_memory_bytes)
        assert record.smallest is not None
        return record.smallest_memory_bytes, record.smallest

    def rejected(
        self, best: Choice, *, memory_limit_bytes: float, bounds: dict[Goal, float], currency: str
    ) -> tuple[Rejected, ...]:
        """Families that ``best`` is not in, in the order of :data:`FAMILIES`; those without a layout are left out."""
        holds = members(
            Layouts.of([best.layout]),
            devices_per_node=self._devices_per_node,
            most_devices=self._most_devices,
        )[:, 0]
        found = []
        for name, record, chosen in zip(FAMILIES, self._records, holds, strict=True):
            if chosen or record.smallest is None:
                continue
            if not record.num_fitting:
                reason = (
                    f"needs {format_bytes(record.smallest_memory_bytes)} on each device, which has "
                    f"{format_bytes(memory_limit_bytes)}; smallest in the family"
                )
            elif record.best is not None:
                reason = _lost(record.best, best, self._goal, currency)
            else:
                reason = _unusable(record, bounds, currency)
            found.append(
                Rejected(
                    family=name,
                    reason=reason,
                    num_layouts=record.num_layouts,
                    num_fitting=record.num_fitting,
                    smallest=record.smallest,
                    smallest_memory_bytes=record.smallest_memory_bytes,
                    best=record.best,
                )
            )
        return tuple(found)


def _best_place(rows: Rows, cost_C: Floats) -> int:
    """Place of the least cost; ties go to the faster, then to the smaller, then to the first."""
    tied = np.flatnonzero(cost_C == cost_C.min())
    some = rows.predictions
    return int(tied[np.lexsort((some.memory_bytes[tied], some.step_seconds[tied]))[0]])


def _key(choice: Choice, goal: Goal) -> tuple[float, float, float]:
    return choice.cost(goal), choice.step_seconds, choice.memory_bytes


def _unusable(record: _Record, bounds: dict[Goal, float], currency: str) -> str:
    """Why nothing that fits can be used."""
    for goal, least in record.least_beyond.items():
        if least > bounds[goal]:
            return (
                f"takes at least {format_cost(goal, least, currency)} a step, "
                f"over the {format_cost(goal, bounds[goal], currency)} allowed"
            )
    if record.least_beyond:
        return "no layout of the family keeps both the time and the price allowed"
    return f"cannot run: {record.why_not}"


def _lost(theirs: Choice, best: Choice, goal: Goal, currency: str) -> str:
    """Why the best of a family is not the best of all."""
    ours, cost = best.cost(goal), theirs.cost(goal)
    if cost == ours:
        return f"as good as the best, {format_cost(goal, ours, currency)}, but {_behind(theirs, best)}"
    said = (
        f"best of the family: {format_cost(goal, cost, currency)} against {format_cost(goal, ours, currency)}"
    )
    if goal == "memory":
        return f"{said} ({describe(theirs.layout)})"
    more = {phase.name: phase.seconds - best.phase(phase.name) for phase in theirs.phases}
    name = max(more, key=lambda each: more[each], default="")
    if not name or more[name] <= 0:
        return said
    if goal != "time":
        said += f"; a step takes {format_seconds(theirs.step_seconds)}"
    if best.phase(name) == 0:
        return f"{said}, {format_seconds(more[name])} of it {name}"
    return f"{said}; {name} takes {format_seconds(more[name])} longer"


def _behind(theirs: Choice, best: Choice) -> str:
    """What decided between two that cost the same by the goal."""
    if theirs.step_seconds != best.step_seconds:
        return f"slower: {format_seconds(theirs.step_seconds)} against {format_seconds(best.step_seconds)}"
    if theirs.memory_bytes != best.memory_bytes:
        return f"larger: {format_bytes(theirs.memory_bytes)} against {format_bytes(best.memory_bytes)} on each device"
    return "the best is the first of them in the space"
