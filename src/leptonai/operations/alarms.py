"""An alarm as a value: what every detector, watch and fault pattern says, and what incidents are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Severity = Literal["info", "warning", "critical", "fatal"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "critical", "fatal")
"""From what is only worth knowing to what has already stopped work."""

Action = Literal["none", "check_job", "restart_worker", "reset_device", "reboot_node", "inspect_hardware"]
"""The class of what would help, the least drastic first; nothing here acts."""

SubjectKind = Literal["run", "rank", "node", "device", "disk", "link", "series"]


@dataclass(frozen=True, slots=True, order=True)
class Subject:
    """What an alarm is about, such as ``Subject("device", "a/gpu3")``; names are unique within their kind."""

    kind: SubjectKind
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """One reason: what was seen, in one sentence, and how it compares with what was expected.

    ``p_value``: the chance of as much or more where nothing is wrong, in (0, 1]; None: not a matter of chance.
    """

    what: str
    value: float | None = None
    expected: float | None = None
    unit: str = ""
    p_value: float | None = None
    series: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """Something is wrong, or (``over``) no longer is.

    Args:
        kind: stable, for machines: ``xid_79``, ``straggler``, ``anomaly``, ``node_silent``.
        subject: what it is about.
        at_seconds: when it was noticed, wall time.
        since_seconds: when it began, as far as can be told; at most ``at_seconds``.
        message: one sentence for a person.
        run_id: the run it befell, where there is one.
        over: the condition has ended; such an alarm closes, it never opens.
    """

    kind: str
    subject: Subject
    severity: Severity
    at_seconds: float
    since_seconds: float
    message: str
    evidence: tuple[Evidence, ...] = ()
    action: Action = "none"
    run_id: str = ""
    over: bool = False
