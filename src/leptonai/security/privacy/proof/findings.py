"""What a check found, as a value."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["ok", "flagged", "skipped"]
Limit = Literal["at most", "at least", "about"]
Family = Literal["statement", "neighbours", "canaries", "membership"]

FALSE_ALARM = 1e-3
"""An honest trainer is flagged by a lower bound or an attack with at most this probability, each."""
RARE_ALARM = 1e-6
"""The same for rows on noise and on the sampler, of which there are many and which have power to spare."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One row of an audit.

    Args:
        family: which of the three checks it belongs to, or that the books agree (``statement``).
        name: of the row, short.
        measured, allowed: numbers in the same unit; NaN where there are none.
        verdict: ``flagged`` where the claim cannot hold, ``skipped`` where the check does not apply.
        limit: how ``allowed`` bounds ``measured``.
        detail: one sentence; what was held against what, or why it was skipped.
    """

    family: Family
    name: str
    measured: float
    allowed: float
    verdict: Verdict
    detail: str
    limit: Limit = "at most"

    def to_json(self) -> dict[str, Any]:
        """JSON-ready values; a number that is not finite becomes null."""
        return {
            "family": self.family,
            "name": self.name,
            "measured": self.measured if math.isfinite(self.measured) else None,
            "limit": self.limit,
            "allowed": self.allowed if math.isfinite(self.allowed) else None,
            "verdict": self.verdict,
            "detail": self.detail,
        }


def at_most(family: Family, name: str, measured: float, allowed: float, detail: str) -> Finding:
    """Flagged where ``measured`` is more than ``allowed``, or not a number.

    >>> at_most("neighbours", "sensitivity", 2.0, 1.0, "one unit's effect").verdict
    'flagged'
    """
    verdict: Verdict = "ok" if measured <= allowed else "flagged"
    return Finding(
        family=family, name=name, measured=measured, allowed=allowed, verdict=verdict, detail=detail
    )


def skipped(family: Family, name: str, why: str) -> Finding:
    """A row that says why there is nothing to hold."""
    return Finding(
        family=family, name=name, measured=math.nan, allowed=math.nan, verdict="skipped", detail=why
    )
