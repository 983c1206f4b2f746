"""The worker of a probe: times kernels, memory and messages where training would run, and tells what it found.

Several of them begin each window of timing together, so that each is slowed by the others as in training.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from leptonai.compute.probe_cases import KernelCase, kernel_cases, key_of
from leptonai.compute.steady_timing import Timing, time_until_steady
from leptonai.core.errors import InputError

if TYPE_CHECKING:
    from leptonai.launch.worker import Line
    from leptonai.training.pytorch.exchange import TorchExchange

Call = Callable[[], object]
Report = Callable[[Mapping[str, Any]], None]

# Of each family, whatever the time: through two a curve can be drawn.
FEWEST_SIZES = 2
# What one case may take beyond its share, when earlier ones left time over.
MOST_SHARES = 6.0
# A case whose one call would take longer than this is left out: bfloat16 without instructions for it.
LONGEST_CALL_SECONDS = 0.5
# float32 numbers of each of the three arrays of a triad: beyond usual caches, 64 MiB each.
TRIAD_ELEMENTS = 16 * 2**20
QUICK_TRIAD_ELEMENTS = 8 * 2**20
# More threads never make a call much slower than one does: to begin and end a parallel part takes some 10 us (Bull
# 1999, "Measuring synchronisation and scheduling overheads in OpenMP"). A thread that has to wait for its core makes
# all others wait some milliseconds, and that in every call for seconds on end, so quartiles do not show it.
DISTURBED_TIMES = 2.0
DISTURBED_SECONDS = 1e-4
NUM_REPEATS = 3
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
            ``message_seconds``, ``quick``, ``alone`` (see :func:`time_kernels`).
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
            found[part] = time_kernels(
                kernels, cases, assignment["seconds"], agree, tell, alone=assignment["alone"]
            )
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
    alone: Mapping[str, float] | None = None,
    now: Callable[[], float] = time.monotonic,
) -> dict[str, list[dict[str, Any]]]:
    """Each case in turn until ``seconds`` are spent; what one leaves over serves those after it.

    Two sizes of each family are timed however late it is, so that no kind or precision is missing; they are the
    first, of middle and of smallest size. A case that was disturbed is timed again at the end, while there is time.

    Args:
        alone: by key of a case, what it takes with one thread and nobody else, where several threads are timed.

    Returns:
        ``timed`` and ``skipped``, the latter with the reason ``why``.
    """
    timer = _KernelTimer(kernels, seconds, len(cases), agree, alone or {}, now)
    for index, case in enumerate(cases):
        timer.first(case)
        tell((index + 1) / len(cases))
    timer.once_more()
    return {"timed": timer.timed, "skipped": timer.skipped}


class _KernelTimer:
    """Times cases against one deadline; what one worker of several cannot do, none of them does."""

    def __init__(
        self,
        kernels: Kernels,
        seconds: float,
        num_cases: int,
        agree: Callable[[bool], bool],
        alone: Mapping[str, float],
        now: Callable[[], float],
    ) -> None:
        self._kernels, self._agree, self._alone, self._now = kernels, agree, alone, now
        self._end, self._share, self._num_left = now() + seconds, seconds / num_cases, num_cases
        empty = kernels.empty()
        self._overhead = 0.0
        if empty is not None:
            most = min(EMPTY_SECONDS, self._share)
            self._overhead = time_until_steady(empty, max_seconds=most, agree=agree).seconds
        self._best: dict[tuple[str, str, bool], float] = {}  # fewest seconds for a FLOP
        self._tried: Counter[tuple[str, str, bool]] = Counter()
        self._disturbed: list[KernelCase] = []
        self.timed: list[dict[str, Any]] = []
        self.skipped: list[dict[str, Any]] = []

    def first(self, case: KernelCase) -> None:
        """Time a case, unless it would be too slow or it is too late."""
        too_slow = self._best.get(case.family, 0.0) * case.flops > LONGEST_CALL_SECONDS
        late = self._tried[case.family] >= FEWEST_SIZES and self._now() > self._end
        left, self._num_left = max(0.0, self._end - self._now()) / self._num_left, self._num_left - 1
        if not self._agree(not (too_slow or late)):
            self._skip(case, "too slow" if too_slow else "no time left")
            return
        self._tried[case.family] += 1
        if not self._time(case, min(max(left, self._share / 4), MOST_SHARES * self._share)):
            self._disturbed.append(case)

    def once_more(self) -> None:
        """Time those that were disturbed again, and give up those that stay so."""
        for _ in range(NUM_REPEATS):
            disturbed, self._disturbed = self._disturbed, []
            for case in disturbed:
                if not self._agree(self._now() < self._end) or not self._time(case, self._share):
                    self._disturbed.append(case)
        for case in self._disturbed:
            self._skip(case, "disturbed")

    def _time(self, case: KernelCase, max_seconds: float) -> bool:
        """Whether all found a sound time."""
        call, copies = self._kernels.prepare(case)
        timing = time_until_steady(call, max_seconds=max_seconds, agree=self._agree)
        seconds = max(timing.seconds - self._overhead, timing.seconds * LEAST_SHARE) / copies
        alone = self._alone.get(key_of(*case.family, case.dims), math.inf)
        if self._alone and not self._agree(seconds <= DISTURBED_TIMES * alone + DISTURBED_SECONDS):
            return False
        self._best[case.family] = min(self._best.get(case.family, math.inf), seconds / case.flops)
        self.timed.append({**_described(case), "seconds": seconds, "spread": timing.spread})
        return True

    def _skip(self, case: KernelCase, why: str) -> None:
        self.skipped.append({**_described(case), "why": why})


def _described(case: KernelCase) -> dict[str, Any]:
    return {
        "kind": case.kind, "dims": list(case.dims), "precision": case.precision, "backward": case.backward,
    }  # fmt: skip


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
