"""A choice of machines, for people and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from leptonai.cli.hardware_view import shown_energy, shown_span
from leptonai.cli.output import say, table

if TYPE_CHECKING:
    from leptonai.compute.hardware.offers import Choice, Offer

TABLE_ROWS = 12
LEAST_WHOLE_PRICE = 100.0
"""Prices below this are shown with two decimals."""
_DOUBTFUL = "?"


def choice_to_json(found: Choice, *, spot: bool) -> dict[str, Any]:
    """The answer with all machine sets and all reasons."""
    deadline = found.deadline_seconds
    return {
        "goal": found.goal,
        "deadline_seconds": deadline,
        "best": offer_to_json(found.best, deadline),
        "surest": None if found.surest is None else offer_to_json(found.surest, deadline),
        "front": [offer_to_json(each, deadline) for each in found.front],
        "offers": [offer_to_json(each, deadline) for each in found.offers],
        "rejected": [
            {"instance": each.instance.name, "reason": each.reason, "needs": each.needs}
            for each in found.rejected
        ],
        "num_tried": found.num_tried,
        "state_bytes": found.state_bytes,
        "time_is": what_time_is(found, spot=spot),
    }


def offer_to_json(offer: Offer, deadline_seconds: float | None) -> dict[str, Any]:
    """One machine set; ``meets_deadline`` is null without a deadline, ``price_verified`` without a price."""
    from leptonai.core.values import value_to_json

    hourly = offer.hourly_price
    return {
        "instance": offer.instance.name,
        "cloud": offer.instance.cloud,
        "region": offer.instance.region,
        "num_nodes": offer.num_nodes,
        "num_devices": offer.num_devices,
        "layout": value_to_json(offer.layout),
        "step_seconds": offer.step_seconds,
        "goodput": offer.goodput,
        "total_seconds": offer.total_seconds,
        "low_seconds": offer.low_seconds,
        "high_seconds": offer.high_seconds,
        "meets_deadline": None if deadline_seconds is None else offer.keeps(deadline_seconds),
        "price": offer.price,
        "price_per_hour": None if hourly is None else hourly.value,
        "price_verified": None if hourly is None else hourly.verified,
        "price_note": (hourly.note or None) if hourly else None,
        "currency": offer.instance.currency,
        "energy_joules": offer.energy_joules,
        "memory_bytes": offer.memory_bytes,
    }


def what_time_is(found: Choice, *, spot: bool) -> str:
    """What the times count and what they leave out, in one sentence."""
    spots = " and interruptions of spot machines" if spot else ""
    return (
        "Times count failures, as often as Llama 3 saw them on H100, and checkpoints of "
        f"{found.state_bytes / 1e9:.3g} GB (parameters x 12 bytes): {found.best.goodput:.1%} of the time trains. "
        f"Waiting for machines{spots} {'are' if spot else 'is'} not in them."
    )


def print_choice(found: Choice, console: Console, *, spot: bool) -> None:
    """The best set, whether it keeps the deadline, the front, and why other instances are no answer."""
    deadline = found.deadline_seconds
    word = "cheapest" if found.goal == "price" else "fastest"
    within = "" if deadline is None else f" within {shown_span(deadline)}"
    say(console, (f"{word}{within}: ", "bold"), _set_words(found.best))
    best = found.best
    interval = f"nine in ten: {shown_span(best.low_seconds)} to {shown_span(best.high_seconds)}"
    price = "" if best.price is None else f", {_money(best)}"
    say(console, f"  {shown_span(best.total_seconds)} ({interval}){price}")
    if deadline is not None and best.keeps(deadline) == "likely":
        console.print(_misses(found, word))
    shown = list(found.front[:TABLE_ROWS])
    shown += [each for each in (found.surest, best) if each is not None and each not in shown]
    for line in doubtful_lines(shown):
        console.print(line)
    say(console, "")
    say(console, ("no other is both faster and cheaper than one of these", "bold"))
    if any(each not in found.front for each in shown):
        shown.sort(key=lambda each: (each.total_seconds, each.cost("price")))
    console.print(offers_table(shown, best=best, deadline_seconds=deadline))
    if deadline is not None:
        console.print(
            "in time: yes: at the upper end of the interval too; likely: at the expected time", style="dim"
        )
    console.print(what_time_is(found, spot=spot), style="dim")
    _print_rejected(found, console)


def doubtful_lines(offers: Sequence[Offer]) -> list[str]:
    """One line for all instances whose price nobody read in its source; none if there are none.

    The names stand in the order of the offers, each once.
    """
    names = list(dict.fromkeys(each.instance.name for each in offers if each.price_is_doubtful))
    if not names:
        return []
    return [f"price not verified ({_DOUBTFUL}): {', '.join(names)}; see lepton hardware show NAME"]


def offers_table(offers: Sequence[Offer], *, best: Offer | None, deadline_seconds: float | None) -> Table:
    """Machine sets, the best one marked."""
    currencies = {each.instance.currency for each in offers if each.price is not None}
    cost = currencies.pop() if len(currencies) == 1 else "price"
    late = () if deadline_seconds is None else ("in time",)
    numbers = ("nodes", "time", cost, "energy")
    rows = table("", "instance", "nodes", "time", *late, cost, "energy", "layout", right=numbers)
    for offer in offers:
        kept = () if deadline_seconds is None else (offer.keeps(deadline_seconds),)
        amount = _number(offer) + (f" {offer.instance.currency}" if cost == "price" and offer.price else "")
        amount += _DOUBTFUL if offer.price_is_doubtful else ""
        rows.add_row(
            "*" if offer is best else "", offer.instance.name, str(offer.num_nodes), shown_span(offer.total_seconds),
            *kept, amount, shown_energy(offer.energy_joules), short_layout(offer),
        )  # fmt: skip
    return rows


def short_layout(offer: Offer) -> str:
    """Degrees above 1 of the axes tensor, data and pipeline and, where states are divided, the level of it."""
    layout = offer.layout
    degrees = {"t": layout.tensor, "d": layout.data, "p": layout.pipeline, "z": layout.zero or 1}
    words = [
        f"{axis}{degree}" for axis, degree in degrees.items() if degree > 1 or (axis == "z" and layout.zero)
    ]
    return " ".join(words) or "-"


def _set_words(offer: Offer) -> str:
    devices = f"{offer.num_devices} x {offer.instance.accelerator.name}"
    return f"{offer.num_nodes} x {offer.instance.name} ({devices})"


def _misses(found: Choice, word: str) -> str:
    """That the upper end of the best one's interval is too late, and what keeps the deadline there too."""
    said = f"its upper end of {shown_span(found.best.high_seconds)} misses the deadline; "
    sure = found.surest
    if sure is None:
        return said + f"so does that of every other set{' with a price' * (found.goal == 'price')}"
    price = "" if sure.price is None else f" for {_money(sure)}"
    return f"{said}the {word} that keeps it there too: {_set_words(sure)}, {shown_span(sure.total_seconds)}{price}"


def _money(offer: Offer) -> str:
    return f"{_number(offer)} {offer.instance.currency}{_DOUBTFUL if offer.price_is_doubtful else ''}"


def _number(offer: Offer) -> str:
    if offer.price is None:
        return "-"
    return f"{offer.price:,.0f}" if offer.price >= LEAST_WHOLE_PRICE else f"{offer.price:.2f}"


def _print_rejected(found: Choice, console: Console) -> None:
    if not found.rejected:
        return
    say(console, "")
    say(console, ("no answer", "bold"))
    rows = table("instance", "why", "would take")
    for each in found.rejected:
        rows.add_row(each.instance.name, each.reason, each.needs)
    console.print(rows)
