"""What ``lepton ops`` shows: incidents, their reasons, and what waits."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from leptonai.cli.output import facts, say, table
from leptonai.cli.severity import DO, STYLES
from leptonai.core.units import format_seconds
from leptonai.core.values import value_to_json
from leptonai.operations.alarms import Evidence
from leptonai.operations.incidents.incident import Incident
from leptonai.operations.incidents.incident_store import Moment
from leptonai.operations.incidents.notify import Call
from leptonai.operations.incidents.similar import Similar

if TYPE_CHECKING:
    from leptonai.launch.registry import RegisteredRun


def incident_table(incidents: Sequence[Incident], *, now_seconds: float) -> Table:
    """One line an incident."""
    rows = table("no", "severity", "state", "began", "at", "what", right=("no",))
    for each in incidents:
        began = format_seconds(max(0.0, now_seconds - each.opened_seconds)) + " ago"
        rows.add_row(
            str(each.number), each.severity, "open" if each.is_open else "closed", began, each.place, each.title,
            style=STYLES[each.severity] if each.is_open else "dim",
        )  # fmt: skip
    return rows


def print_status(
    incidents: Sequence[Incident],
    runs: Sequence[RegisteredRun],
    calls: Sequence[Call],
    console: Console,
    *,
    now_seconds: float,
) -> None:
    """Whether anything is wrong."""
    waiting = [each for each in calls if each.state == "waiting"]
    lost = [each for each in calls if each.state == "given up"]
    rows = {
        "open incidents": str(len(incidents)) if incidents else "none",
        "running runs": ", ".join(each.run_id for each in runs) or "none",
    }
    if waiting or lost:
        rows["calls"] = f"{len(waiting)} waiting, {len(lost)} given up"
    console.print(facts(rows))
    if incidents:
        say(console, "")
        console.print(incident_table(incidents, now_seconds=now_seconds))


def status_to_json(
    incidents: Sequence[Incident], runs: Sequence[RegisteredRun], calls: Sequence[Call]
) -> dict[str, Any]:
    """The same as JSON-ready values."""
    return {
        "open_incidents": [value_to_json(each) for each in incidents],
        "running_runs": [each.run_id for each in runs],
        "calls": {
            state: sum(each.state == state for each in calls) for state in ("waiting", "told", "given up")
        },
    }


def print_explained(
    incident: Incident, timeline: Sequence[Moment], alike: Sequence[Similar], console: Console
) -> None:
    """All that is known of an incident."""
    rows = {
        "incident": str(incident.number),
        "state": "open" if incident.is_open else f"closed {_at(incident.closed_seconds or 0.0)}",
        "severity": incident.severity,
        "cause": f"{incident.cause} ({incident.subject})",
        "what": incident.title,
        "at": incident.place,
        "began": _at(incident.opened_seconds),
    }
    if incident.epoch > 1:
        rows["opened"] = f"{incident.epoch} times"
    if incident.run_ids:
        rows["runs"] = ", ".join(incident.run_ids)
    actions = [each.alarm.action for each in timeline if each.alarm.action != "none"]
    if actions:
        rows["would help"] = ", ".join(DO[each] for each in dict.fromkeys(actions))
    console.print(facts(rows))
    _print_reasons(timeline, console)
    _print_timeline(timeline, console)
    if alike:
        say(console, ("\nsimilar before", "bold"))
        found = table("no", "alike", "began", "at", "what", right=("no", "alike"))
        for each in alike:
            was = each.incident
            found.add_row(
                str(was.number), f"{each.likeness:.0%}", _at(was.opened_seconds), was.place, was.title
            )
        console.print(found)


def explained_to_json(
    incident: Incident, timeline: Sequence[Moment], alike: Sequence[Similar]
) -> dict[str, Any]:
    """The same as JSON-ready values."""
    return {
        "incident": value_to_json(incident),
        "timeline": [value_to_json(each) for each in timeline],
        "similar": [{"number": each.incident.number, "likeness": each.likeness} for each in alike],
    }


def reason_words(evidence: Evidence) -> str:
    """One reason in a line.

    >>> reason_words(Evidence(what="rank 3 computes longer", value=1.4, expected=1.0, unit="s", p_value=1e-6))
    'rank 3 computes longer: 1.4 s, expected 1 s (chance 1e-06)'
    """
    words = evidence.what
    if evidence.value is not None:
        words += f": {evidence.value:.4g} {evidence.unit}".rstrip()
        if evidence.expected is not None:
            words += f", expected {evidence.expected:.4g} {evidence.unit}".rstrip()
    return words if evidence.p_value is None else f"{words} (chance {evidence.p_value:.2g})"


def _print_reasons(timeline: Sequence[Moment], console: Console) -> None:
    reasons = dict.fromkeys(reason_words(reason) for each in timeline for reason in each.alarm.evidence)
    if reasons:
        say(console, ("\nevidence", "bold"))
        for each in reasons:
            console.print(f"- {each}")


def _print_timeline(timeline: Sequence[Moment], console: Console) -> None:
    say(console, ("\ntimeline", "bold"))
    found = table("noticed", "change", "severity", "what")
    for each in timeline:
        words = f"over: {each.alarm.message}" if each.alarm.over else each.alarm.message
        found.add_row(_at(each.alarm.at_seconds), each.change, each.alarm.severity, words)
    console.print(found)


def _at(seconds: float) -> str:
    return time.strftime("%m-%d %H:%M:%S", time.localtime(seconds))
