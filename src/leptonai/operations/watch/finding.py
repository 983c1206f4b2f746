"""What a watch of a run's curves has found, as a value."""

from __future__ import annotations

from dataclasses import dataclass

from leptonai.operations.alarms import Action, Severity


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveFinding:
    """A curve of a run looks wrong, or (``over``) no longer does.

    Args:
        kind: such as ``loss_spike``; stable, for machines.
        since_step: the first odd step, as far as can be told.
        message: one sentence for a person.
        severity: how grave.
        evidence: sentences that it rests on.
        action: what would help.
        over: it has passed.
    """

    kind: str
    since_step: int
    message: str
    severity: Severity = "warning"
    evidence: tuple[str, ...] = ()
    action: Action = "none"
    over: bool = False
