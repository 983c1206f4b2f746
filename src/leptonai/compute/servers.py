"""How many parameter servers, and what surviving costs: a pure function of the work and the cores."""

from __future__ import annotations

import math
from dataclasses import dataclass

from leptonai.core.errors import InputError

# One core applies an update at about 2.5 GB of parameters a second (SGD with momentum, journalled), and one
# more server costs each push about 60 microseconds of messages and waking: measured on 2-core x86 machines.
APPLY_BYTES_PER_SECOND = 2.5e9
MESSAGE_SECONDS = 60e-6

_SURVIVES = {
    "journal": "an acknowledged update survives the death of a server process, not that of the machine",
    "replica": "an acknowledged update survives the death of a server process and of its machine",
    "none": "nothing survives the death of a server process: durability is off, as asked",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerPlan:
    """The parameter servers of a run.

    Args:
        num_servers: >= 1; parameters are balanced over them by bytes.
        consistency: how far workers may drift apart, as text.
        durability: ``journal``, ``replica`` or ``none``.
        memory_bytes: shared memory over all servers; 0: not known.
        apply_seconds: predicted time to apply one update.
        survives: what an acknowledged update survives, one sentence.
        why: of the number of servers, one sentence.
    """

    num_servers: int
    consistency: str
    durability: str
    memory_bytes: int
    apply_seconds: float
    survives: str
    why: str


def plan_servers(
    *,
    parameter_bytes: int,
    num_states: int,
    num_slots: int,
    num_cores: int,
    asked: int | None,
    consistency: str,
    durability: str,
) -> ServerPlan:
    """Choose the number of servers where it was not asked for.

    Args:
        parameter_bytes: of the model in float32, > 0.
        num_states: the optimiser's arrays as long as the parameters, >= 0.
        num_slots: workers the servers have room for, >= 1.
        num_cores: of this machine, >= 1; servers get at most half of them.
        asked: the job's own number; None: choose.

    >>> plan_servers(parameter_bytes=10**8, num_states=1, num_slots=4, num_cores=16, asked=None,
    ...     consistency="asp", durability="journal").num_servers
    8
    """
    if parameter_bytes <= 0:
        raise InputError("a model without parameters needs no parameter server")
    most = max(1, num_cores // 2)
    if asked is not None:
        chosen, why = asked, "as the job asks"
    else:
        # time(s) = bytes / (s * rate) + s * message is least at this s
        best = math.sqrt(parameter_bytes / APPLY_BYTES_PER_SECOND / MESSAGE_SECONDS)
        chosen = max(1, min(round(best), most))
        why = f"least time to apply an update, with at most half of {num_cores} cores"
    return ServerPlan(
        num_servers=chosen,
        consistency=consistency,
        durability=durability,
        memory_bytes=parameter_bytes * (1 + num_states + 2 * num_slots),
        apply_seconds=parameter_bytes / APPLY_BYTES_PER_SECOND / chosen + chosen * MESSAGE_SECONDS,
        survives=_SURVIVES[durability],
        why=why,
    )
