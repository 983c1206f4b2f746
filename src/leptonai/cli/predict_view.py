"""Forecasts and fleets as tables and JSON."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from leptonai.cli.output import facts, say, table
from leptonai.core.values import value_to_json
from leptonai.operations.predict.fleet import Fleet, WeibullCurve
from leptonai.operations.predict.forecast import Forecast, Held, Prospect
from leptonai.operations.predict.remaining_life import NotEnough, Reason

_SECONDS = (("d", 86400.0), ("h", 3600.0), ("min", 60.0), ("s", 1.0))
_TIMES = {"s": 1.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_LEAST_ODDS = 1.1


def show_held(console: Console, model: Forecast, held: Held) -> None:
    """How a forecast held on units that were left out."""
    console.print(facts({"units": f"{held.num_units}, {held.num_failures} failures"}))
    headings = ("seen", "calibration error", "Brier", "of the mean's")
    rows = table("fails within", *headings, right=headings)
    for word, each in zip(model.horizon_words, held.reliabilities, strict=True):
        share = f"{each.brier / each.base_brier:.2f}" if each.base_brier else "-"
        rows.add_row(word, f"{each.num_hits:,}", f"{each.error:.4f}", f"{each.brier:.4f}", share)
    console.print(rows)
    error, cap = in_time(held.life.rmse_blend, model.time_unit), in_time(held.life.cap, model.time_unit)
    say(console, f"life left    off by {error}, root mean square; more than {cap} ahead counts as that")
    say(console, f"             intervals hold {model.life.band.coverage:.0%}")


def show_scores(console: Console, model: Forecast, found: Sequence[Prospect | NotEnough], top: int) -> None:
    """Units that still work, the likeliest failure first."""
    judged = [each for each in found if isinstance(each, Prospect)]
    short = [each for each in found if isinstance(each, NotEnough)]
    rows = table("unit", *model.horizon_words, "life left", "why", right=model.horizon_words)
    for each in judged[:top]:
        low, high = in_time(each.outlook.low, model.time_unit), in_time(each.outlook.high, model.time_unit)
        left = f"{in_time(each.outlook.remaining, model.time_unit)} ({low} to {high})"
        rows.add_row(each.unit, *map(chance_words, each.risk.chances), left, why(each.risk.reasons))
    if judged:
        console.print(rows)
    if len(judged) > top:
        say(console, f"{len(judged) - top} more; --top shows them")
    for one in short:
        say(console, f"{one.unit}: not enough history ({one.num_samples} of {one.num_needed} samples)")
    if not found:
        say(console, "no unit of this history still works")


def score_to_json(model: Forecast, found: Sequence[Prospect | NotEnough]) -> dict[str, Any]:
    """Scores for machines."""
    return {
        "horizons": list(model.horizon_words),
        "time_unit": model.time_unit,
        "units": [value_to_json(each) for each in found if isinstance(each, Prospect)],
        "not_enough_history": [value_to_json(each) for each in found if isinstance(each, NotEnough)],
    }


def show_fleet(console: Console, found: Fleet, unit: str, top: int) -> None:
    """How long units live, and the likeliest lemons."""
    lives = found.lives
    if lives is None:
        say(console, "fewer than two failures: no curve of lives yet")
    else:
        console.print(facts(_lives(lives, found.varies, unit)))
    rows: Table = table("unit", "failures", "watched", "a lemon?", right=("failures", "watched"))
    for each in found.units[:top]:
        verdict = f"{'yes, ' if each.is_lemon else ''}{chance_words(each.lemon_chance)}"
        rows.add_row(each.unit, str(each.num_failures), in_time(each.exposure, unit), verdict)
    console.print(rows)
    if len(found.units) > top:
        say(console, f"{len(found.units) - top} more; --top shows them")


def _lives(lives: WeibullCurve, varies: float, unit: str) -> dict[str, str]:
    low, high = in_time(lives.mean_low, unit), in_time(lives.mean_high, unit)
    verdict = _shape(lives.shape_low, lives.shape_high)
    return {
        "lives": f"{lives.num_lives}, {lives.num_failures} ended by a failure",
        "mean life": f"{in_time(lives.mean_life, unit)} ({low} to {high})",
        "shape": f"{lives.shape:.2f} ({lives.shape_low:.2f} to {lives.shape_high:.2f}): {verdict}",
        "rates differ": f"by {varies:.0%} between units beyond luck",
    }


def in_time(value: float, unit: str) -> str:
    """A length of time, as people say it.

    >>> in_time(5400, "s"), in_time(2.0, "d"), in_time(41.27, "cycles")
    ('1.5 h', '2 d', '41 cycles')
    """
    if unit not in _TIMES:
        return f"{_short(value)} {unit}" if unit != "units of time" else _short(value)
    seconds = value * _TIMES[unit]
    name, size = next(((name, size) for name, size in _SECONDS if seconds >= size), _SECONDS[-1])
    return f"{_short(seconds / size)} {name}"


def chance_words(chance: float) -> str:
    """A chance with as many digits as it deserves.

    >>> chance_words(0.123), chance_words(0.00421), chance_words(0.00001), chance_words(0.9999)
    ('12 %', '0.4 %', '<0.1 %', '>99 %')
    """
    if chance > 0.99:
        return ">99 %"
    if chance < 0.001:
        return "<0.1 %"
    return f"{100 * chance:.0f} %" if chance >= 0.01 else f"{100 * chance:.1f} %"


def why(reasons: Sequence[Reason]) -> str:
    """The signals that moved the odds, with their factors.

    >>> why([Reason(signal="heat", moved=1.1), Reason(signal="age", moved=-0.7), Reason(signal="fan", moved=0.01)])
    'heat x3, age /2'
    """
    shown = [each for each in reasons if math.exp(abs(each.moved)) >= _LEAST_ODDS]
    return ", ".join(_factor(each) for each in shown) or "-"


def _factor(reason: Reason) -> str:
    factor = f"{math.exp(min(abs(reason.moved), 20.0)):.2g}"
    factor = f"{float(factor):g}"
    return f"{reason.signal} {'x' if reason.moved > 0 else '/'}{factor}"


def _short(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{float(f'{value:.2g}'):g}"


def _shape(low: float, high: float) -> str:
    if high < 1:
        return "the young fail most"
    return "they wear out" if low > 1 else "failures may come at random"
