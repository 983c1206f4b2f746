"""The worker of a probe: times kernels, memory and messages where training would run, and tells what it found.

Several of them begin each window of timing together, so that each is slowed by the others as in training.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from leptonai.compute.probe_cases import KernelCase, kernel_cases
from leptonai.compute.steady_timing import Timing, time_until_steady
from leptonai.core.errors import InputError

if TYPE_CHECKING:
    from leptonai.launch.worker import Line
    from leptonai.training.pytorch.exchange import TorchExchange

Call = Callable[[], object]
Report = Callable[[Mapping[str, Any]], None]

# What one case may take beyond its share, when earlier ones left time over.
MOST_SHARES = 6.0
# A case whose one call would take longer than this is left out: bfloat16 without instructions for it.
LONGEST_CALL_SECONDS = 0.5
# float32 numbers of each of the three arrays of a triad: beyond usual caches, 64 MiB each.
TRIAD_ELEMENTS = 16 * 2**20
QUICK_TRIAD_ELEMENTS = 8 * 2**20
TRIAD_SECONDS = 0.6
EMPTY_SECONDS = 0.2
# Of a call's time that is its kernel's at least, whatever the empty call took.
LEAST_SHARE = 0.1
SHORT_CHAIN, LONG_CHAIN = 16, 144
CHAIN_SECONDS = 0.3


class Kernels(Protocol):
    """A framework's kernels, made ready to be timed."""

    name: str

    @property
    def versions(self) -> dict[str, str]: ...

    def prepare(self, case: KernelCase) -> tuple[Call, int]: ...

    def empty(self) -> Call | None: ...

    def chain(self, length: int) -> tuple[Call, Call]: ...


def probe(assignment: Mapping[str, Any], line: Line, fds: list[int]) -> dict[str, Any]:
    """Do the assigned parts of a probe; JSON-ready.

    Args:
        assignment: ``framework``, ``threads``, ``device``, ``rank``, ``num_workers``, ``rendezvous`` (None when
            alone), ``parts`` (of ``kernels``, ``calls``, ``memory``, ``messages``), ``seconds`` for kernels,
            ``message_seconds``, ``quick``.
        line: takes progress as ``{"progress": share of all done, "part": name of the current one}``.
        fds: a memory file that all workers of the probe hold.
    """
    import torch

    torch.set_num_threads(assignment["threads"])
    kernels = _kernels(assignment)
    forward_backward = kernels.chain(SHORT_CHAIN)[1]
    forward_backward()
    line.send({"ready": time.monotonic()})
    exchange = _join(assignment)
    try:
        return _parts(assignment, kernels, exchange, line.send, fds)
    finally:
        if exchange is not None:
            # Another worker may leave first; gloo then closes its sockets while they are being shut down here.
            with contextlib.suppress(OSError):
                exchange.close()


def _parts(
    assignment: Mapping[str, Any],
    kernels: Kernels,
    exchange: TorchExchange | None,
    report: Report,
    fds: list[int],
) -> dict[str, Any]:
    import torch

    found: dict[str, Any] = {
        "versions": kernels.versions,
        "num_gpus": torch.cuda.device_count() if kernels.name == "pytorch" else 0,
    }
    agree = _agreement(exchange)
    parts = assignment["parts"]
    for index, part in enumerate(parts):

        def tell(share: float, part: str = part, index: int = index) -> None:
            report({"part": part, "progress": (index + share) / len(parts)})

        tell(0.0)
        if part == "kernels":
            cases = kernel_cases(quick=assignment["quick"])
            found[part] = time_kernels(kernels, cases, assignment["seconds"], agree, tell)
        elif part == "calls":
            found[part] = time_calls(kernels, agree)
        elif part == "memory":
            found[part] = time_triad(assignment["quick"], agree)
        elif part == "messages":
            from leptonai.launch.probe_messages import time_messages

            assert exchange is not None, "messages need others"
            seconds, quick = assignment["message_seconds"], assignment["quick"]
            found[part] = time_messages(exchange, seconds, quick, fds[0])
        else:
            raise InputError(f"probe: unknown part {part!r}")
    return found


def _kernels(assignment: Mapping[str, Any]) -> Kernels:
    if assignment["framework"] == "tensorflow":
        from leptonai.training.tensorflow.probe import KerasKernels

        return KerasKernels(threads=assignment["threads"])
    from leptonai.training.pytorch.probe import TorchKernels

    return TorchKernels(threads=assignment["threads"], device=assignment["device"])


def _join(assignment: Mapping[str, Any]) -> TorchExchange | None:
    if assignment["num_workers"] == 1:
        return None
    from leptonai.training.pytorch.exchange import TorchExchange

    return TorchExchange(
        rank=assignment["rank"],
        num_workers=assignment["num_workers"],
        rendezvous=Path(assignment["rendezvous"]),
        backend="gloo",
    )


def _agreement(exchange: TorchExchange | None) -> Callable[[bool], bool]:
    """Whether all workers say so; they leave the question at about the same moment."""
    import numpy as np

    def agree(mine: bool) -> bool:
        if exchange is None:
            return mine
        votes = np.array([float(mine)])
        exchange.sum(votes)
        return bool(votes[0] == exchange.num_workers)

    return agree


def time_kernels(
    kernels: Kernels,
    cases: tuple[KernelCase, ...],
    seconds: float,
    agree: Callable[[bool], bool] = bool,
    tell: Callable[[float], None] = lambda share: None,
    *,
    now: Callable[[], float] = time.monotonic,
) -> dict[str, list[dict[str, Any]]]:
    """Each case in turn until ``seconds`` are spent; what one leaves over serves those after it.

    One case of each family is timed however late it is, so that no kind or precision is missing; they are the
    first, and small.

    Returns:
        ``timed`` and ``skipped``, the latter with the reason ``why``: ``no time left``, or ``too slow`` where
        one call would take more than half a second.
    """
    end = now() + seconds
    share = seconds / len(cases)
    empty = kernels.empty()
    overhead = 0.0
    if empty is not None:
        overhead = time_until_steady(empty, max_seconds=min(EMPTY_SECONDS, share), agree=agree).seconds
    best: dict[tuple[str, str, bool], float] = {}  # fewest seconds for a FLOP, of a family
    timed: list[dict[str, Any]] = []
    skipped: list[dict[str, Any]] = []
    for index, case in enumerate(cases):
        known = case.family in best
        too_slow = known and best[case.family] * case.flops > LONGEST_CALL_SECONDS
        late = known and now() > end
        described = {
            "kind": case.kind, "dims": list(case.dims), "precision": case.precision, "backward": case.backward,
        }  # fmt: skip
        if not agree(not (too_slow or late)):  # what is too much for one of us, none of us does
            skipped.append({**described, "why": "too slow" if too_slow else "no time left"})
            continue
        left = max(0.0, end - now()) / (len(cases) - index)
        call, copies = kernels.prepare(case)
        timing = time_until_steady(
            call, max_seconds=min(max(left, share / 4), MOST_SHARES * share), agree=agree
        )
        seconds_each = max(timing.seconds - overhead, timing.seconds * LEAST_SHARE) / copies
        best[case.family] = min(best.get(case.family, math.inf), seconds_each / case.flops)
        timed.append({**described, "seconds": seconds_each, "spread": timing.spread})
        tell((index + 1) / len(cases))
    return {"timed": timed, "skipped": skipped}


def time_calls(kernels: Kernels, agree: Callable[[bool], bool] = bool) -> dict[str, float]:
    """Seconds that one smallest operation adds to a forward pass, and to the backward pass after it."""

    def timed(call: Call) -> Timing:
        return time_until_steady(call, max_seconds=CHAIN_SECONDS, agree=agree)

    short, long = kernels.chain(SHORT_CHAIN), kernels.chain(LONG_CHAIN)
    more = LONG_CHAIN - SHORT_CHAIN
    forward = max(0.0, timed(long[0]).seconds - timed(short[0]).seconds) / more
    long_both, short_both = timed(long[1]), timed(short[1])
    both = max(0.0, long_both.seconds - short_both.seconds) / more
    return {
        "forward": forward,
        "backward": max(0.0, both - forward),
        # What a backward pass costs beside its operations: entering and leaving autograd or a graph.
        "fixed": max(0.0, short_both.seconds - SHORT_CHAIN * both),
        "spread": long_both.spread,
    }


def time_triad(quick: bool, agree: Callable[[bool], bool] = bool) -> dict[str, float]:
    """Bytes a second of ``a = b + s c`` over arrays beyond the caches, by this process with its threads.

    Source: McCalpin 1995, STREAM; three arrays' bytes are counted, as there.
    """
    import torch

    elements = QUICK_TRIAD_ELEMENTS if quick else TRIAD_ELEMENTS
    a, b, c = (torch.ones(elements) for _ in range(3))
    seconds = TRIAD_SECONDS / 3 if quick else TRIAD_SECONDS
    timing = time_until_steady(lambda: torch.add(b, c, alpha=3.0, out=a), max_seconds=seconds, agree=agree)
    return {"bytes_per_second": 3 * 4 * elements / timing.seconds, "spread": timing.spread}
