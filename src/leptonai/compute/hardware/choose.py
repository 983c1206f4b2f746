"""The cheapest or fastest machines for training a transformer: every instance, in several numbers, laid out best."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Protocol

from leptonai.compute.hardware.entries import Instance
from leptonai.compute.hardware.machines import machine_from, most_nodes, training_precision
from leptonai.compute.hardware.offers import GOALS, Choice, Goal, Offer, Rejected, front_of
from leptonai.compute.interruptions import expected_interruptions
from leptonai.compute.prediction.layouts import Layout
from leptonai.compute.prediction.machine import Machine
from leptonai.compute.prediction.memory import MIXED_ADAM
from leptonai.compute.transformer import Transformer
from leptonai.core.errors import InputError

DEFAULT_MAX_NODES = 64
PREDICTED_PRECISIONS = ("bf16", "fp16")
"""What steps of transformers can be predicted in."""
STATE_BYTES_PER_PARAMETER = MIXED_ADAM.optimizer_bytes
"""Of a checkpoint: the float32 copy, from which the parameters come, and two moments, 12 bytes together."""
SECONDS_PER_HOUR = 3600.0
SECONDS_PER_DAY = 86400.0
Progress = Callable[[int, int], None]
"""Called with the machine sets tried so far and all there are."""


class Planned(Protocol):
    """A layout and what one optimiser step of it is predicted to cost."""

    @property
    def layout(self) -> Layout: ...
    @property
    def step_seconds(self) -> float: ...
    @property
    def low_seconds(self) -> float: ...
    @property
    def high_seconds(self) -> float: ...
    @property
    def energy_joules(self) -> float: ...
    @property
    def memory_bytes(self) -> float: ...


PlanLayout = Callable[[Transformer, Machine, int], Planned]
"""The fastest layout of a transformer on a machine for a global batch; InputError where nothing fits or can run."""


def choose(
    model: Transformer,
    *,
    instances: Sequence[Instance],
    global_batch: int,
    tokens: float | None = None,
    steps: int | None = None,
    deadline_seconds: float | None = None,
    goal: Goal = "price",
    spot: bool = False,
    max_nodes: int = DEFAULT_MAX_NODES,
    plan: PlanLayout | None = None,
    on_progress: Progress = lambda done, total: None,
) -> Choice:
    """The best machine set, and why others are not.

    Nodes are tried in powers of two, each set at its fastest layout: on given machines paid by the hour, that is the
    cheapest one too. Time, price and deadline count what failures and checkpoints take
    (:func:`~leptonai.compute.interruptions.expected_interruptions`).

    Args:
        model: what is trained.
        instances: what may be rented.
        global_batch: examples of one optimiser step, >= 1.
        tokens: to train on; or ``steps``, exactly one of the two.
        steps: optimiser steps.
        deadline_seconds: its expected time must be no longer; None: as long as it likes.
        goal: ``price`` or ``time``.
        spot: at spot prices instead of those on demand; interruptions by the cloud are not in the time.
        max_nodes: most nodes of one set, >= 1.
        plan: lays the model on a machine; None: the search of ``leptonai.compute.search``.
        on_progress: called after every machine set.

    Raises:
        InputError: an argument lies outside its range; the goal is the price and none is known; nothing fits; or
            nothing meets the deadline (the nearest is named).
    """
    num_steps = _steps(model, global_batch=global_batch, tokens=tokens, steps=steps)
    _check(instances, goal=goal, deadline_seconds=deadline_seconds, max_nodes=max_nodes, spot=spot)
    sets = list(_machine_sets(instances, max_nodes))
    plans = _Plans(model, global_batch, plan or default_plan())
    offers: list[Offer] = []
    failures: dict[str, str] = {}
    state_bytes = model.num_parameters * STATE_BYTES_PER_PARAMETER
    for place, (instance, num_nodes) in enumerate(sets, start=1):
        found = plans.find(instance, num_nodes)
        if isinstance(found, str):
            failures[instance.name] = found
        else:
            offers.append(_offer(instance, num_nodes, found, num_steps, state_bytes, spot=spot))
        on_progress(place, len(sets))
    rejected = _rejected(instances, offers, failures, goal=goal, spot=spot, deadline_seconds=deadline_seconds)
    return Choice(
        goal=goal,
        best=_best(offers, failures, goal=goal, deadline_seconds=deadline_seconds),
        offers=tuple(sorted(offers, key=_order(goal))),
        front=front_of(offers),
        rejected=tuple(rejected),
        num_tried=len(sets),
        deadline_seconds=deadline_seconds,
        surest=_surest(offers, goal, deadline_seconds),
        state_bytes=state_bytes,
    )


def default_plan() -> PlanLayout:
    """The search over layouts with the predictor of transformer steps, in a space small enough for many machines."""
    from leptonai.compute.hardware.layout_search import plan_layout

    return plan_layout


class _Plans:
    """Layouts found so far: sets that differ only in price need no second search."""

    def __init__(self, model: Transformer, global_batch: int, plan: PlanLayout) -> None:
        self._model = model
        self._global_batch = global_batch
        self._plan = plan
        self._found: dict[Machine, Planned | str] = {}

    def find(self, instance: Instance, num_nodes: int) -> Planned | str:
        """The fastest layout, or why there is none."""
        precision = training_precision(instance.accelerator)
        if precision not in PREDICTED_PRECISIONS:
            return f"{instance.accelerator.name} has no rate for {' or '.join(PREDICTED_PRECISIONS)}"
        bare = replace(machine_from(instance, num_nodes, precision), price_per_device_hour=None)
        if bare not in self._found:
            try:
                self._found[bare] = self._plan(self._model, bare, self._global_batch)
            except InputError as error:
                self._found[bare] = error.message
        return self._found[bare]


def _best(
    offers: Sequence[Offer], failures: dict[str, str], *, goal: Goal, deadline_seconds: float | None
) -> Offer:
    if not offers:
        raise _nothing_fits(failures)
    usable = [each for each in offers if goal == "time" or each.price is not None]
    allowed = math.inf if deadline_seconds is None else deadline_seconds
    in_time = [each for each in usable if each.total_seconds <= allowed]
    if not in_time:
        raise _too_late(usable, allowed)
    return min(in_time, key=_order(goal))


def _surest(offers: Sequence[Offer], goal: Goal, deadline_seconds: float | None) -> Offer | None:
    if deadline_seconds is None:
        return None
    usable = [each for each in offers if goal == "time" or each.price is not None]
    return min(
        (each for each in usable if each.keeps(deadline_seconds) == "yes"), key=_order(goal), default=None
    )


def _order(goal: Goal) -> Callable[[Offer], tuple[float, float, float]]:
    return lambda each: (each.cost(goal), each.total_seconds, each.cost("price"))


def _machine_sets(instances: Sequence[Instance], max_nodes: int) -> Iterator[tuple[Instance, int]]:
    for instance in instances:
        num_nodes = 1
        while num_nodes <= min(max_nodes, most_nodes(instance)):
            yield instance, num_nodes
            num_nodes *= 2


def _offer(
    instance: Instance, num_nodes: int, planned: Planned, num_steps: int, state_bytes: float, *, spot: bool
) -> Offer:
    goodput = expected_interruptions(
        num_devices=num_nodes * instance.count, num_nodes=num_nodes, state_bytes=state_bytes
    ).goodput
    times = num_steps / goodput
    total_seconds = planned.step_seconds * times
    hourly = instance.spot_price_per_hour if spot else instance.price_per_hour
    return Offer(
        instance=instance,
        num_nodes=num_nodes,
        layout=planned.layout,
        step_seconds=planned.step_seconds,
        total_seconds=total_seconds,
        low_seconds=planned.low_seconds * times,
        high_seconds=planned.high_seconds * times,
        price=None if hourly is None else hourly.value * num_nodes * total_seconds / SECONDS_PER_HOUR,
        energy_joules=planned.energy_joules * times,
        memory_bytes=planned.memory_bytes,
        goodput=goodput,
        hourly_price=hourly,
    )


def _rejected(
    instances: Sequence[Instance],
    offers: Sequence[Offer],
    failures: dict[str, str],
    *,
    goal: Goal,
    spot: bool,
    deadline_seconds: float | None,
) -> Iterator[Rejected]:
    for instance in instances:
        mine = [each for each in offers if each.instance is instance]
        if not mine:
            needs = "more nodes, or larger devices"
            if training_precision(instance.accelerator) not in PREDICTED_PRECISIONS:
                needs = "devices that train in 16 bits"
            elif most_nodes(instance) == 1:
                needs = "larger devices; its network is not published"
            yield Rejected(instance=instance, reason=failures[instance.name], needs=needs)
            continue
        if goal == "price" and instance.price(spot=spot) is None:
            kind = "spot price" if spot else "price"
            yield Rejected(
                instance=instance, reason=f"no {kind} is known", needs="a price, in a file of yours"
            )
            continue
        fastest = min(mine, key=lambda each: each.total_seconds)
        if deadline_seconds is not None and fastest.total_seconds > deadline_seconds:
            days = fastest.total_seconds / SECONDS_PER_DAY
            yield Rejected(
                instance=instance,
                reason=f"too late: {days:,.1f} days on {_nodes(fastest.num_nodes)}",
                needs=_needed(fastest, deadline_seconds),
            )


def _needed(fastest: Offer, deadline_seconds: float) -> str:
    """Nodes for the deadline if more of them sped the job up in proportion, which they never do more than."""
    least = math.ceil(fastest.num_nodes * fastest.total_seconds / deadline_seconds)
    if least > most_nodes(fastest.instance):
        alone = fastest.instance.network_bytes_per_second is None
        limit = (
            "its network is not published" if alone else f"at most {fastest.instance.max_nodes} work together"
        )
        return f"at least {least:,} nodes; {limit}"
    return f"at least {least:,} nodes"


def _nodes(count: int) -> str:
    return "1 node" if count == 1 else f"{count} nodes"


def _steps(model: Transformer, *, global_batch: int, tokens: float | None, steps: int | None) -> int:
    if global_batch < 1:
        raise InputError(f"choose: expected global_batch >= 1, found {global_batch}")
    if (tokens is None) == (steps is None):
        raise InputError(
            "choose: expected either tokens or steps", hint="say how long to train in one of the two"
        )
    if steps is not None:
        if steps < 1:
            raise InputError(f"choose: expected steps >= 1, found {steps}")
        return steps
    assert tokens is not None
    if not (tokens > 0 and math.isfinite(tokens)):
        raise InputError(f"choose: expected tokens > 0, found {tokens}")
    return max(1, math.ceil(tokens / (global_batch * model.sequence)))


def _check(
    instances: Sequence[Instance], *, goal: str, deadline_seconds: float | None, max_nodes: int, spot: bool
) -> None:
    if goal not in GOALS:
        raise InputError(f"choose: unknown goal {goal!r}", hint=f"one of: {', '.join(GOALS)}")
    if max_nodes < 1:
        raise InputError(f"choose: expected max_nodes >= 1, found {max_nodes}")
    if deadline_seconds is not None and not deadline_seconds > 0:
        raise InputError(f"choose: expected a deadline > 0 s, found {deadline_seconds}")
    if not instances:
        raise InputError("choose: there are no instances to choose from")
    if goal == "price" and all(each.price(spot=spot) is None for each in instances):
        kind = "spot price" if spot else "price"
        raise InputError(
            f"the goal is the price, but no {kind} of these instances is known",
            hint="give prices in a catalogue file, or choose with the goal time",
        )
    currencies = {each.currency for each in instances if each.price(spot=spot) is not None}
    if goal == "price" and len(currencies) > 1:
        raise InputError(
            f"the prices are in several currencies: {', '.join(sorted(currencies))}",
            hint="choose among instances of one currency",
        )


def _nothing_fits(failures: dict[str, str]) -> InputError:
    lines = "\n".join(f"  {name}: {reason}" for name, reason in list(failures.items())[:5])
    more = f"\n  and {len(failures) - 5} more" if len(failures) > 5 else ""
    return InputError(
        f"no machine set can run this job:\n{lines}{more}",
        hint="allow more nodes, or choose among instances with more memory",
    )


def _too_late(usable: Sequence[Offer], deadline_seconds: float) -> InputError:
    if not usable:
        return InputError(
            "the goal is the price, but no price is known of any machine set that can run this job",
            hint="give prices in a catalogue file, or choose with the goal time",
        )
    nearest = min(usable, key=lambda each: each.total_seconds)
    days, allowed = nearest.total_seconds / SECONDS_PER_DAY, deadline_seconds / SECONDS_PER_DAY
    return InputError(
        f"nothing meets the deadline of {allowed:,.3g} days; the nearest is {nearest.num_nodes} x "
        f"{nearest.instance.name} with {days:,.3g} days",
        hint=f"allow {math.ceil(days):,} days or more nodes ({nearest.instance.name}: "
        f"{_needed(nearest, deadline_seconds)})",
    )
