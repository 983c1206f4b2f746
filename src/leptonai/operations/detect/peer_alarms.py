"""An odd machine or rank as an alarm, in words: in what it is odd, since when, how it and its peers looked before."""

from __future__ import annotations

import math
from collections.abc import Sequence

from leptonai.core.errors import InputError
from leptonai.operations.alarms import Alarm, Evidence, Severity, Subject, SubjectKind
from leptonai.operations.detect.peers import Odd, OddMetric


def peer_alarm(
    odd: Odd,
    *,
    machines: Sequence[str],
    metrics: Sequence[str],
    at_seconds: Sequence[float],
    kind: SubjectKind = "node",
    severity: Severity = "warning",
    run_id: str = "",
) -> Alarm:
    """The alarm for one of :func:`leptonai.operations.detect.peers.odd_ones`.

    Args:
        odd: what was found.
        machines: names, in the order of the values' first axis.
        metrics: names, in the order of the second axis.
        at_seconds: wall time of each step, seconds since 1970; the alarm is given at the last.
        kind: of what is compared: ``node``, ``rank``, ``device`` ...
        severity: of the alarm.
        run_id: the run whose ranks were compared, where there is one.

    Raises:
        InputError: there are fewer names or times than the find refers to.

    >>> found = OddMetric(metric=0, kind="level", score=9.0, before=1.0, now=4.0, peers_before=1.0, peers_now=1.1)
    >>> odd = Odd(machine=1, p_value=1e-9, first_step=1, end_step=2, metrics=(found,))
    >>> peer_alarm(odd, machines=["a", "b"], metrics=["temp"], at_seconds=[0.0, 60.0]).message
    'node b is not like its 1 peers: temp is 4 (its peers: 1.1); before, it was 1 (its peers: 1)'
    """
    num_metrics = 1 + max(each.metric for each in odd.metrics)
    if odd.machine >= len(machines) or num_metrics > len(metrics) or odd.end_step > len(at_seconds):
        raise InputError(
            f"expected names for machine {odd.machine} and {num_metrics} metrics and {odd.end_step} times, "
            f"found {len(machines)}, {len(metrics)} and {len(at_seconds)}"
        )
    subject = Subject(kind, machines[odd.machine])
    passed = "" if odd.end_step == len(at_seconds) else "; it has passed"
    first = _sentence(odd.metrics[0], metrics)
    return Alarm(
        kind="odd_one_out",
        subject=subject,
        severity=severity,
        at_seconds=at_seconds[-1],
        since_seconds=at_seconds[odd.first_step],
        message=f"{subject} is not like its {len(machines) - 1} peers: {first}{passed}",
        evidence=tuple(
            Evidence(
                what=_sentence(each, metrics),
                value=each.now if math.isfinite(each.now) else None,
                expected=each.peers_now if math.isfinite(each.peers_now) else None,
                p_value=odd.p_value,
                series=metrics[each.metric],
            )
            for each in odd.metrics
        ),
        run_id=run_id,
    )


def _sentence(found: OddMetric, metrics: Sequence[str]) -> str:
    name = metrics[found.metric]
    what = name if found.kind == "level" else f"the move of {name} from step to step"
    now = f"{what} is {found.now:.4g} (its peers: {found.peers_now:.4g})"
    if not math.isfinite(found.before):
        return f"{now} all the time looked at"
    return f"{now}; before, it was {found.before:.4g} (its peers: {found.peers_before:.4g})"
