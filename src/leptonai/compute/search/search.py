"""The search: every layout of a space, pruned by memory, costed, compared."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from leptonai.compute.prediction.outcome import Predictor
from leptonai.compute.search.answer import SearchResult, choice_of, describe, format_cost
from leptonai.compute.search.families import Families
from leptonai.compute.search.rows import GOALS, Goal, Rows, best_of, front_with
from leptonai.compute.search.space import Space, chunks, count
from leptonai.core.errors import InputError
from leptonai.core.units import format_bytes

Progress = Callable[[int, int], None]
"""Called with the layouts seen so far and all there are."""


def search(
    space: Space,
    predictor: Predictor,
    *,
    memory_limit_bytes: float,
    goal: Goal = "time",
    top: int = 20,
    max_step_seconds: float | None = None,
    max_step_price: float | None = None,
    currency: str = "USD",
    on_progress: Progress = lambda done, total: None,
) -> SearchResult:
    """The best layouts of a space, exactly: none is skipped but those that need more memory than there is.

    Args:
        space: what may vary.
        predictor: costs layouts; its memory prunes before it predicts anything else.
        memory_limit_bytes: what a device has for the job, > 0.
        goal: what to make small.
        top: how many of the best to keep, >= 1.
        max_step_seconds: longer steps are no answer, as a deadline asks; None: no bound.
        max_step_price: dearer steps are no answer, as a budget asks; None: no bound.
        currency: of the predictor's prices, for sentences.
        on_progress: called after every chunk; an exception from it ends the search.

    Raises:
        InputError: an argument lies outside its range; the space is empty; nothing fits, can run, or keeps the
            bounds; or a price is asked for and none is known, or energy where no power is known.
    """
    _check(goal, top, memory_limit_bytes)
    total = count(space)
    if not total:
        raise _empty(space)
    bounds: dict[Goal, float] = {}
    if max_step_seconds is not None:
        bounds["time"] = max_step_seconds
    if max_step_price is not None:
        bounds["price"] = max_step_price
    state = _State(
        goal=goal,
        top=top,
        bounds=bounds,
        families=Families(goal, devices_per_node=space.devices_per_node, most_devices=max(space.num_devices)),
    )
    for layouts in chunks(space):
        memory_N = predictor.memory(layouts)
        fits_N = memory_N <= memory_limit_bytes
        masks_FC = state.families.see(layouts, memory_N, fits_N)
        if fits_N.any():
            fitting = layouts.take(fits_N)
            state.see(Rows(layouts=fitting, predictions=predictor.predict(fitting)), masks_FC)
        state.num_layouts += len(layouts)
        on_progress(state.num_layouts, total)
    return _answer(state, space, memory_limit_bytes=memory_limit_bytes, currency=currency)


@dataclass(slots=True, kw_only=True)
class _State:
    """What is kept while chunks pass."""

    goal: Goal
    top: int
    bounds: dict[Goal, float]
    families: Families
    best: Rows | None = None
    front: Rows | None = None
    num_layouts: int = 0
    num_fitting: int = 0
    num_refused: int = 0
    num_beyond_bounds: int = 0
    why_not: str = ""
    least: dict[Goal, float] = field(default_factory=dict)

    def see(self, rows: Rows, masks_FC: NDArray[np.bool_]) -> None:
        """Take in costed rows."""
        _check_known(rows, self.goal, self.bounds)
        runs_C = rows.predictions.reasons == 0
        beyond = {goal: runs_C & (rows.cost(goal) > bound) for goal, bound in self.bounds.items()}
        self.families.see_costed(masks_FC, rows, runs_C, beyond)
        usable_C = runs_C & ~np.any([*beyond.values(), np.zeros_like(runs_C)], axis=0)
        self.num_fitting += len(rows)
        self.num_refused += int((~runs_C).sum())
        self.num_beyond_bounds += int((runs_C & ~usable_C).sum())
        for goal in self.bounds if runs_C.any() else ():
            self.least[goal] = min(self.least.get(goal, np.inf), float(rows.cost(goal)[runs_C].min()))
        if not runs_C.all() and not self.why_not:
            self.why_not = rows.predictions.why_not[int(rows.predictions.reasons[~runs_C][0]) - 1]
        if not usable_C.any():
            return
        usable = rows if usable_C.all() else rows.take(usable_C)
        best = best_of(usable, self.goal, self.top)
        self.best = best if self.best is None else best_of(self.best.then(best), self.goal, self.top)
        self.front = front_with(self.front, usable)


def _answer(state: _State, space: Space, *, memory_limit_bytes: float, currency: str) -> SearchResult:
    if not state.num_fitting:
        raise _too_small(state.families, memory_limit_bytes)
    if state.best is None or state.front is None:
        raise _nothing_usable(state, currency)
    choices = [choice_of(state.best, place) for place in range(len(state.best))]
    front = state.front.take(np.argsort(state.front.predictions.step_seconds, kind="stable"))
    best = choices[0]
    warnings = []
    if best.layout.consistency != "bsp":
        warnings.append(
            f"{best.layout.consistency} changes what is learned: its steps are quicker, not worth as much each"
        )
    return SearchResult(
        goal=state.goal,
        best=best,
        runners_up=tuple(choices[1:]),
        front=tuple(choice_of(front, place) for place in range(len(front))),
        rejected=state.families.rejected(
            best,
            memory_limit_bytes=memory_limit_bytes,
            bounds=state.bounds,
            currency=currency,
        ),
        num_layouts=state.num_layouts,
        num_too_big=state.num_layouts - state.num_fitting,
        num_refused=state.num_refused,
        num_beyond_bounds=state.num_beyond_bounds,
        warnings=tuple(warnings),
    )


def _check(goal: str, top: int, memory_limit_bytes: float) -> None:
    if goal not in GOALS:
        raise InputError(f"search: unknown goal {goal!r}", hint=f"one of: {', '.join(GOALS)}")
    if top < 1:
        raise InputError(f"search: expected top >= 1, found {top}")
    if not memory_limit_bytes > 0:
        raise InputError(f"search: expected memory_limit_bytes > 0, found {memory_limit_bytes}")


def _check_known(rows: Rows, goal: Goal, bounds: dict[Goal, float]) -> None:
    if rows.predictions.price is None and (goal == "price" or "price" in bounds):
        raise InputError(
            "the goal or a bound is a price, but no price of these devices is known",
            hint="give each node its price: (US dollars an hour of the whole node), or plan for time",
        )
    if goal == "energy" and not rows.predictions.energy_joules.any():
        raise InputError(
            "the goal is energy, but the power of these devices is not known",
            hint="state power_watts of the device, or plan for time",
        )


def _empty(space: Space) -> InputError:
    devices = ", ".join(map(str, sorted(space.num_devices)))
    return InputError(
        f"no layout takes {devices} devices: their number must be tensor x data x pipeline, where tensor divides "
        f"{space.num_heads} heads, pipeline divides {space.num_layers} layers and data divides a global batch of "
        f"{space.global_batch}",
        hint="allow fewer devices, or change the global batch",
    )


def _too_small(families: Families, memory_limit_bytes: float) -> InputError:
    needed, layout = families.smallest()
    many = layout.num_devices > 1
    return InputError(
        f"nothing fits: the smallest layout needs {format_bytes(needed)} on "
        f"{f'each of {layout.num_devices} devices' if many else 'its device'}; devices have "
        f"{format_bytes(memory_limit_bytes)} (smallest: {describe(layout)})",
        hint="take more devices, or devices with more memory",
    )


def _nothing_usable(state: _State, currency: str) -> InputError:
    if not state.num_beyond_bounds:
        return InputError(f"{state.num_fitting} layouts fit, but none can run: {state.why_not}")
    allowed = " and ".join(format_cost(goal, bound, currency) for goal, bound in state.bounds.items())
    found = " and ".join(format_cost(goal, state.least[goal], currency) for goal in state.bounds)
    return InputError(
        f"no layout keeps within {allowed} a step; the least found is {found}",
        hint="allow more time or money, or take more or faster devices",
    )
