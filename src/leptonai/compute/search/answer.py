"""What a search answers, for people and as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from leptonai.compute.prediction.layouts import Layout
from leptonai.compute.search.rows import Goal, Rows
from leptonai.core.errors import InputError
from leptonai.core.units import format_bytes, format_seconds
from leptonai.core.values import value_from_json, value_to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseTime:
    """Seconds of a step that one phase takes; ``name`` is of ``leptonai.compute.prediction.outcome.PHASES``."""

    name: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """One layout and what it is predicted to cost.

    Args:
        layout: the layout.
        step_seconds: one optimiser step.
        low_seconds: lower end of its interval.
        high_seconds: upper end.
        memory_bytes: of the fullest device.
        energy_joules: of all devices, a step.
        price: of a step; None: not known.
        phases: where the time goes, in the order of the predictor.
    """

    layout: Layout
    step_seconds: float
    low_seconds: float
    high_seconds: float
    memory_bytes: float
    energy_joules: float
    price: float | None
    phases: tuple[PhaseTime, ...]

    def cost(self, goal: Goal) -> float:
        """What a goal makes small; ``price`` must be known."""
        if goal == "time":
            return self.step_seconds
        if goal == "price":
            assert self.price is not None
            return self.price
        return self.memory_bytes if goal == "memory" else self.energy_joules

    def phase(self, name: str) -> float:
        """Seconds of a phase; 0 where it is not."""
        return sum(each.seconds for each in self.phases if each.name == name)

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready values; :meth:`from_json` reads them back."""
        values: dict[str, Any] = value_to_json(self)
        return {**values, "phases": {each.name: each.seconds for each in self.phases}}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Choice:
        """Inverse of :meth:`to_json`.

        Raises:
            InputError: a value is missing or has the wrong type.
        """
        phases = values.get("phases") if isinstance(values, Mapping) else None
        if not isinstance(phases, Mapping):
            raise InputError("not a choice: phases: expected names and seconds")
        pairs = [{"name": name, "seconds": seconds} for name, seconds in phases.items()]
        return value_from_json(cls, {**values, "phases": pairs})


def choice_of(rows: Rows, index: int) -> Choice:
    """One row as a value."""
    found = rows.predictions
    return Choice(
        layout=rows.layouts.row(index),
        step_seconds=float(found.step_seconds[index]),
        low_seconds=float(found.low_seconds[index]),
        high_seconds=float(found.high_seconds[index]),
        memory_bytes=float(found.memory_bytes[index]),
        energy_joules=float(found.energy_joules[index]),
        price=None if found.price is None else float(found.price[index]),
        phases=tuple(
            PhaseTime(name=name, seconds=float(seconds[index])) for name, seconds in found.phases.items()
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """A family of layouts that the best one does not belong to, and why it lost.

    Args:
        family: its name, of ``leptonai.compute.search.families.FAMILIES``.
        reason: one clause, such as ``needs 93.1 GiB on each device, which has 80 GiB; smallest in the family``.
        num_layouts: layouts in the family.
        num_fitting: those that fit the memory.
        smallest: the one of least memory, the first of equals.
        smallest_memory_bytes: what it needs.
        best: its best layout by the goal; None: none can be used.
    """

    family: str
    reason: str
    num_layouts: int
    num_fitting: int
    smallest: Layout
    smallest_memory_bytes: float
    best: Choice | None

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready values."""
        values: dict[str, Any] = value_to_json(self)
        return {**values, "best": None if self.best is None else self.best.to_json()}


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """The answer.

    Args:
        goal: what was made small.
        best: the best layout; ties go to the faster, then to the smaller, then to the first in the space.
        runners_up: the next best, best first.
        front: layouts that no other is at least as good as in time, price, memory and energy at once; ascending
            in time. Without prices, over the other three.
        rejected: families without the best layout.
        num_layouts: layouts in the space.
        num_too_big: those that do not fit the memory and so were not costed.
        num_refused: those that fit but that the predictor said cannot run.
        num_beyond_bounds: those that can run but take longer or cost more than was allowed.
        warnings: what the reader must know, such as that the best layout changes what is learned.
    """

    goal: Goal
    best: Choice
    runners_up: tuple[Choice, ...]
    front: tuple[Choice, ...]
    rejected: tuple[Rejected, ...]
    num_layouts: int
    num_too_big: int
    num_refused: int
    num_beyond_bounds: int
    warnings: tuple[str, ...] = ()

    @property
    def num_costed(self) -> int:
        """Layouts whose time, memory, energy and price were predicted."""
        return self.num_layouts - self.num_too_big

    def to_json(self) -> dict[str, Any]:
        """As JSON-ready values."""
        return {
            **{
                name: getattr(self, name)
                for name in (
                    "goal",
                    "num_layouts",
                    "num_too_big",
                    "num_costed",
                    "num_refused",
                    "num_beyond_bounds",
                )
            },
            "best": self.best.to_json(),
            "runners_up": [each.to_json() for each in self.runners_up],
            "front": [each.to_json() for each in self.front],
            "rejected": [each.to_json() for each in self.rejected],
            "warnings": list(self.warnings),
        }


def describe(layout: Layout) -> str:
    """A layout in a few words.

    >>> describe(Layout(tensor=8, data=4, micro_batch=2, recompute="full"))
    'tensor 8 x data 4, micro-batch 2, full recompute'
    """
    degrees = (("tensor", layout.tensor), ("data", layout.data), ("pipeline", layout.pipeline))
    words = [" x ".join(f"{name} {degree}" for name, degree in degrees if degree > 1) or "one device"]
    if layout.fsdp > 1:
        words.append(f"zero {layout.zero} over {layout.fsdp}")
    words.append(f"micro-batch {layout.micro_batch}")
    if layout.interleave > 1:
        words.append(f"{layout.interleave} pieces a stage")
    if layout.recompute != "none":
        words.append(f"{layout.recompute} recompute")
    if layout.sequence_parallel:
        words.append("sequence parallel")
    if layout.consistency != "bsp":
        words.append(layout.consistency)
    wide = [name for name, degree in degrees if degree > 1]
    order = [axis for axis in layout.placement.split() if axis in wide]
    if order != wide:  # the usual order, nearest neighbours first, goes without saying
        words.append(f"nearest first: {', '.join(order)}")
    return ", ".join(words)


def format_cost(goal: Goal, value: float, currency: str) -> str:
    """A cost with its unit: seconds or bytes to three digits, money to four."""
    if goal == "time":
        return format_seconds(value)
    if goal == "memory":
        return format_bytes(value)
    return f"{value:.4g} {currency}" if goal == "price" else f"{value:.3g} J"
