"""How private answers are shown: numbers with their error bars, and what is covered."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from leptonai.cli.output import facts, out, print_json, say, table

if TYPE_CHECKING:
    from leptonai.security.privacy.statistics.plan import Plan
    from leptonai.security.privacy.statistics.release import Answer
    from leptonai.security.privacy.statistics.session import Released

RELATION = "add or remove one unit with all its rows"
NOT_COVERED = (
    "column names, error messages, and the time it took",
    "rows left out and values cut at bounds are not in the error bars",
)


def show_answers(released: Released, *, as_json: bool) -> None:
    """The answers and what they cost."""
    if as_json:
        print_json(answers_to_json(released))
        return
    rows = table("query", "group", "value", "± 95 %", "epsilon", right=("value", "± 95 %", "epsilon"))
    for each in released.answers:
        rows.add_row(name_of(each), each.group or "", *shown_answer(each), f"{each.epsilon:.3g}")
    console = out()
    console.print(rows)
    answered = {each.query for each in released.answers}
    for planned in released.plan.queries:
        if planned.query.name not in answered:
            say(console, f"{planned.query.name}: no key is common enough to be shown")
    console.print()
    _show_cover(released.plan, released.spent)
    if not released.limited:
        say(console, "no grant limits this table; set one with: lepton privacy grant")
    say(console, f"charged as {released.request_id}")


def show_plan(plan: Plan, spent: float, *, as_json: bool) -> None:
    """What the answers would cost and how far noise would move them."""
    from leptonai.security.privacy.statistics.release import expected_error

    errors = [(planned, expected_error(planned)) for planned in plan.queries]
    if as_json:
        entries = [
            {
                "query": planned.query.name,
                "epsilon": plan.request.epsilon * planned.share,
                "error_bar": bar,
                "error_of": kind,
                "threshold": planned.threshold.least if planned.threshold else None,
            }
            for planned, (bar, kind) in errors
        ]
        print_json({"queries": entries, **_cover_to_json(plan, spent)})
        return
    rows = table(
        "query", "± 95 %", "keys shown from", "epsilon", right=("± 95 %", "keys shown from", "epsilon")
    )
    for planned, (bar, kind) in errors:
        least = str(planned.threshold.least) if planned.threshold else ""
        rows.add_row(
            planned.query.name, shown_bar(bar, kind), least, f"{plan.request.epsilon * planned.share:.3g}"
        )
    out().print(rows)
    out().print()
    _show_cover(plan, spent)
    say(out(), "nothing was read or charged")


def _show_cover(plan: Plan, spent: float) -> None:
    request = plan.request
    whose = "row" if request.unit is None else f"{request.unit} with all its rows"
    rows = {
        "hidden": f"one {whose}, there or not, in all answers together",
        "cost": f"epsilon {spent:.4g} of {request.epsilon:g} at delta {request.delta:g}",
    }
    if request.unit is not None:
        most = f"{_some(request.limits.rows, 'row')} and {_some(request.limits.groups, 'group')}"
        rows["counted"] = f"at most {most} of each {request.unit}"
    rows["noise"] = f"discrete {plan.noise.capitalize()}, on whole numbers"
    rows["not covered"] = f"{NOT_COVERED[0]};\n{NOT_COVERED[1]}"
    out().print(facts(rows))


def _some(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count:,} {noun}s"


def name_of(answer: Answer) -> str:
    """The query's name, with the quantile where there is one."""
    return answer.query if answer.at is None else f"{answer.query} {100 * answer.at:g} %"


def shown_answer(answer: Answer) -> tuple[str, str]:
    """Value and error bar, with as many digits as the noise leaves any meaning."""
    bar = shown_bar(answer.error_bar, answer.error_of)
    if answer.error_of == "rank":
        return f"{answer.value:,.6g}", bar
    return f"{answer.value:,.{decimals(answer.error_bar)}f}", bar


def shown_bar(bar: float, kind: str) -> str:
    """An error bar in words.

    >>> shown_bar(0.1234, "value"), shown_bar(37, "rank")
    ('0.12', '37 rows')
    """
    if kind == "rank":
        return f"{bar:,.0f} rows"
    if kind == "unknown":
        return "by count"
    return f"{bar:,.{decimals(bar)}f}"


def decimals(bar: float) -> int:
    """Digits after the point that show two digits of an error bar.

    >>> decimals(0.1234), decimals(12.3), decimals(3)
    (2, 0, 0)
    """
    if bar <= 0 or bar == int(bar):
        return 0
    return max(0, 1 - math.floor(math.log10(bar)))


def answers_to_json(released: Released) -> dict[str, Any]:
    """Everything that may be told, JSON-ready."""
    answers = [
        {
            "query": each.query,
            "group": each.group,
            "at": each.at,
            "value": int(each.value) if each.value.is_integer() else each.value,
            "error_bar": each.error_bar,
            "error_of": each.error_of,
            "epsilon": each.epsilon,
        }
        for each in released.answers
    ]
    cover = _cover_to_json(released.plan, released.spent)
    return {"answers": answers, **cover, "request_id": released.request_id, "limited": released.limited}


def _cover_to_json(plan: Plan, spent: float) -> dict[str, Any]:
    from leptonai.security.privacy.accounting.mechanisms import charge_to_json

    request = plan.request
    return {
        "epsilon": spent,
        "epsilon_asked": request.epsilon,
        "delta": request.delta,
        "noise": plan.noise,
        "neighbours": RELATION if request.unit is not None else "add or remove one row",
        "unit": request.unit,
        "rows_per_unit": request.limits.rows,
        "groups_per_unit": request.limits.groups,
        "charges": [charge_to_json(each) for each in plan.charges],
        "not_covered": list(NOT_COVERED),
    }
