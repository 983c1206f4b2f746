"""Layouts with what they cost: small tables that grow chunk by chunk while the rest is forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from leptonai.compute.prediction.layouts import COLUMNS, Floats, Layouts
from leptonai.compute.prediction.outcome import Predictions
from leptonai.compute.search.pareto import merge

Goal = Literal["time", "price", "memory", "energy"]
GOALS: tuple[Goal, ...] = ("time", "price", "memory", "energy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rows:
    """N layouts and their predictions."""

    layouts: Layouts
    predictions: Predictions

    def __len__(self) -> int:
        return len(self.layouts)

    def take(self, which: Any) -> Rows:
        """Some of them, by an index array, a mask or a slice."""
        return Rows(layouts=self.layouts.take(which), predictions=self.predictions.take(which))

    def then(self, more: Rows) -> Rows:
        """These rows and ``more`` after them."""
        layouts = Layouts(
            **{
                name: np.concatenate([getattr(self.layouts, name), getattr(more.layouts, name)])
                for name in COLUMNS
            }
        )
        return Rows(layouts=layouts, predictions=_join(self.predictions, more.predictions))

    def cost(self, goal: Goal) -> Floats:
        """The column that a goal makes small; ``price`` must be known."""
        found = {
            "time": self.predictions.step_seconds,
            "price": self.predictions.price,
            "memory": self.predictions.memory_bytes,
            "energy": self.predictions.energy_joules,
        }[goal]
        assert found is not None
        return found

    def costs(self) -> Floats:
        """Time, memory, energy and, where it is known, price; a row each."""
        known = [goal for goal in GOALS if goal != "price" or self.predictions.price is not None]
        return np.stack([self.cost(goal) for goal in known])


def best_of(rows: Rows, goal: Goal, top: int) -> Rows:
    """The best ``top`` rows, best first: by the goal, then by time, then by memory, then as they came."""
    cost = rows.cost(goal)
    kept = np.arange(len(rows))
    if top < len(rows):
        kept = np.flatnonzero(cost <= np.partition(cost, top - 1)[top - 1])
    some = rows.take(kept)
    order = np.lexsort((some.predictions.memory_bytes, some.predictions.step_seconds, cost[kept]))
    return some.take(order[:top])


def front_with(front: Rows | None, more: Rows) -> Rows:
    """The Pareto front over all costs of a front and more rows."""
    costs = more.costs()
    staying, joining = merge(costs[:, :0] if front is None else front.costs(), costs)
    new = more.take(joining)
    return new if front is None else front.take(staying).then(new)


def _join(first: Predictions, second: Predictions) -> Predictions:
    def phase(of: Predictions, name: str) -> Floats:
        return of.phases[name] if name in of.phases else np.zeros(len(of))

    price = None
    if first.price is not None and second.price is not None:
        price = np.concatenate([first.price, second.price])
    return Predictions(
        **{
            name: np.concatenate([getattr(first, name), getattr(second, name)])
            for name in (
                "step_seconds",
                "low_seconds",
                "high_seconds",
                "memory_bytes",
                "energy_joules",
                "reasons",
            )
        },
        price=price,
        phases={
            name: np.concatenate([phase(first, name), phase(second, name)])
            for name in dict.fromkeys([*first.phases, *second.phases])
        },
        why_not=first.why_not,
    )
