"""Which past incidents were like this one: the same kinds of trouble, at the same place or elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from leptonai.operations.incidents.incident import Incident

SAME_PLACE = 0.2
"""Added for the same place: trouble that returns to one machine says more than trouble that moves."""
LEAST = 0.3
"""Less than this is not worth showing."""


@dataclass(frozen=True, slots=True)
class Similar:
    """A past incident and how like the present one it was, in (0, 1]."""

    incident: Incident
    likeness: float


def similar(present: Incident, past: Iterable[Incident], *, most: int = 5) -> Sequence[Similar]:
    """The most alike first; of equals the latest.

    Likeness is the share of kinds of alarms that two have in common (Jaccard 1901), weighed against the place.
    """
    found = []
    for each in past:
        if each.number == present.number:
            continue
        ours, theirs = _kinds(present), _kinds(each)
        common = len(ours & theirs) / len(ours | theirs)
        likeness = common * (1 - SAME_PLACE) + (SAME_PLACE if common and each.place == present.place else 0.0)
        if likeness >= LEAST:
            found.append(Similar(each, likeness))
    return sorted(found, key=lambda each: (-each.likeness, -each.incident.opened_seconds))[:most]


def _kinds(incident: Incident) -> set[str]:
    return {key.split(" of ", 1)[0] for key in incident.keys}
