"""Machine sets with what a job would cost on each, and the answer made of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from leptonai.compute.hardware.entries import Figure, Instance
from leptonai.compute.prediction.layouts import Layout

Goal = Literal["price", "time"]
GOALS: tuple[Goal, ...] = ("price", "time")
Kept = Literal["yes", "likely", "no"]
"""Whether a deadline is kept: at the upper end of the interval too; at the expected time only; not even then."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One machine set with its best layout.

    Args:
        instance: what is rented.
        num_nodes: how many of it.
        layout: how the job lies on it.
        step_seconds: one optimiser step.
        total_seconds: all steps with what failures and checkpoints take (``goodput``); waiting for machines and
            interruptions of spot machines are not in it.
        low_seconds: lower end of its interval, in which nine in ten should lie.
        high_seconds: upper end.
        price: of all hours, in the currency of the instance; None: not known.
        energy_joules: of all devices over the run, at full power throughout; 0: no power is known.
        memory_bytes: of the fullest device.
        goodput: share of the time that trains, in (0, 1].
        hourly_price: what ``price`` was worked out from; None: not known.
    """

    instance: Instance
    num_nodes: int
    layout: Layout
    step_seconds: float
    total_seconds: float
    low_seconds: float
    high_seconds: float
    price: float | None
    energy_joules: float
    memory_bytes: float
    goodput: float = 1.0
    hourly_price: Figure | None = None

    @property
    def num_devices(self) -> int:
        """Devices of all nodes."""
        return self.num_nodes * self.instance.count

    @property
    def price_is_doubtful(self) -> bool:
        """Whether the hourly price is one that nobody read in its source."""
        return self.hourly_price is not None and not self.hourly_price.verified

    def keeps(self, deadline_seconds: float) -> Kept:
        """Whether it is done by then."""
        if self.high_seconds <= deadline_seconds:
            return "yes"
        return "likely" if self.total_seconds <= deadline_seconds else "no"

    def cost(self, goal: Goal) -> float:
        """What a goal makes small; infinite where a price is not known."""
        if goal == "time":
            return self.total_seconds
        return math.inf if self.price is None else self.price


@dataclass(frozen=True, slots=True, kw_only=True)
class Rejected:
    """An instance that no number of nodes makes an answer.

    Args:
        instance: which.
        reason: why not.
        needs: what it would take.
    """

    instance: Instance
    reason: str
    needs: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The answer.

    Args:
        goal: what was made small.
        best: the best machine set that meets the deadline.
        offers: all that can run, those beyond the deadline too; best by the goal first.
        front: those that no other beats in both time and price, fastest first; without prices, the fastest alone.
        rejected: instances that are no answer at all.
        num_tried: machine sets that were searched.
        deadline_seconds: None: there is none.
        surest: the best machine set whose interval's upper end meets the deadline too; None: none does, or there is
            no deadline.
        state_bytes: of one checkpoint.
    """

    goal: Goal
    best: Offer
    offers: tuple[Offer, ...]
    front: tuple[Offer, ...]
    rejected: tuple[Rejected, ...]
    num_tried: int
    deadline_seconds: float | None = None
    surest: Offer | None = None
    state_bytes: float = 0.0


def front_of(offers: Sequence[Offer]) -> tuple[Offer, ...]:
    """Offers that no other beats in both time and price, fastest first; without prices, the fastest alone."""
    best = math.inf
    front: list[Offer] = []
    for offer in sorted(offers, key=lambda each: (each.total_seconds, each.cost("price"))):
        if offer.cost("price") < best or not front:
            front.append(offer)
            best = offer.cost("price")
    if math.isinf(front[0].cost("price")) and len(front) > 1:
        return tuple(front[1:])
    return tuple(front)
