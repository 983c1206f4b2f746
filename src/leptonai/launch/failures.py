"""How a worker failed, which failure the others follow from, and the error the caller gets."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from leptonai.core.errors import Fault, InputError, LeptonError, Refused


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """How one worker failed; ``lost_peer``: only because another one did."""

    rank: int
    kind: str
    message: str
    hint: str | None
    traceback: str
    step: int
    at_monotonic: float
    lost_peer: bool = False


def silent_death(rank: int, code: int, log: Path, *, step: int, at_monotonic: float) -> Failure:
    """The failure of a worker that ended without a word; ``code`` as :class:`Exited` has it."""
    if code < 0:
        how = f"was killed by {signal.Signals(-code).name}"
        hint = "out of memory? see the kernel log" if code == -signal.SIGKILL else None
    else:
        how, hint = f"ended with exit status {code} without a word", f"see {log}"
    return Failure(
        rank=rank, kind="error", message=f"worker {rank} {how}", hint=hint, traceback=tail(log), step=step,
        at_monotonic=at_monotonic,
    )  # fmt: skip


def root_cause(failures: Sequence[Failure]) -> Failure:
    """The failure the others follow from: the earliest that is not just the loss of a peer."""
    return min(failures, key=lambda failure: (failure.lost_peer, failure.at_monotonic))


def to_error(failure: Failure) -> LeptonError:
    """The failure as the launcher's own error, of the kind the worker raised."""
    if failure.kind == "InputError":
        return InputError(failure.message, hint=failure.hint)
    if failure.kind == "Refused":
        return Refused(failure.message, hint=failure.hint)
    if failure.kind == "Fault":
        return Fault(failure.message, hint=failure.hint)
    where = (
        "" if failure.message.startswith("worker ") else f"worker {failure.rank}, step {failure.step + 1}: "
    )
    return Fault(f"{where}{failure.message}", hint=failure.hint, detail=failure.traceback or None)


def tail(path: Path, *, from_byte: int = 0, longest_bytes: int = 8000) -> str:
    """The end of a log, for a report."""
    try:
        with path.open("rb") as file:
            file.seek(max(from_byte, path.stat().st_size - longest_bytes))
            return file.read().decode(errors="replace").strip()
    except OSError:
        return ""
