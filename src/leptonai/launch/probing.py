"""Measuring this machine: workers as training starts them time kernels, memory and messages; the disk here.

settings (threads x busy processes) -> one group of workers each -> samples -> Measured
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from leptonai.compute.engines.base import Exited, Message, WorkerSpec
from leptonai.compute.engines.local import LocalEngine
from leptonai.compute.measured import Measured
from leptonai.core.clock import Clock, SystemClock
from leptonai.core.errors import Fault, InputError
from leptonai.launch.assignments import worker_environment
from leptonai.launch.engine import FrameworkName, start_engine
from leptonai.launch.failures import Failure, tail, to_error
from leptonai.launch.probe_disk import probe_disk
from leptonai.launch.probe_findings import Findings, Setting, Skipped, Spread, gather, to_measured
from leptonai.launch.probe_messages import MESSAGE_BYTES

Progress = Callable[[float, str], None]
"""Told what share of the whole is done, in [0, 1], and what is being done."""

DEFAULT_SECONDS = 45.0
QUICK_SECONDS = 12.0
FEWEST_SECONDS = 2.0
# Of the whole time, what messages get; of what is left before each group of workers, what its kernels get.
MESSAGE_SHARE = 0.15
KERNEL_SHARE = 0.75
LEAST_KERNEL_SECONDS = 0.5
# A group that says nothing for so long hangs; importing TensorFlow on a busy machine takes up to a minute.
SILENT_SECONDS = 120.0
POLL_SECONDS = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Probed:
    """What a probe found.

    Args:
        measured: the machine.
        spreads: how noisy the machine was, by setting and by what was measured.
        skipped: what was not measured, for want of time.
        seconds: the probe took.
    """

    measured: Measured
    spreads: tuple[Spread, ...]
    skipped: tuple[Skipped, ...]
    seconds: float


def probe_here(
    *, framework: FrameworkName = "pytorch", seconds: float = DEFAULT_SECONDS, quick: bool = False
) -> Measured:
    """This machine as it is now; see :func:`probe_machine`."""
    return probe_machine(framework=framework, seconds=seconds, quick=quick).measured


def probe_machine(
    *,
    framework: FrameworkName = "pytorch",
    seconds: float = DEFAULT_SECONDS,
    quick: bool = False,
    directory: Path | None = None,
    engine: LocalEngine | None = None,
    progress: Progress = lambda share, doing: None,
    clock: Clock | None = None,
) -> Probed:
    """Measure this machine with workers that are started as training starts them.

    Args:
        framework: whose kernels.
        seconds: about how long it may take in all, >= 2.
        quick: fewer sizes, for a first look.
        directory: on the disk to measure; None: the disk is not measured.
        engine: to start workers on; None: one is started for this.
        progress: told how far it is.
        clock: of the duration and the date.

    Raises:
        InputError: too little time.
        Fault: a worker died or hangs, or the disk could not be measured.
    """
    if not seconds >= FEWEST_SECONDS:
        raise InputError(f"a probe needs {FEWEST_SECONDS:g} s or more, found {seconds:g}")
    clock = clock or SystemClock()
    began = clock.monotonic_seconds()
    cores = tuple(sorted(os.sched_getaffinity(0)))
    settings = list(settings_for(len(cores)))
    num_messages = sum("messages" in setting.parts for setting in settings)
    reserved = MESSAGE_SHARE * seconds
    found = Findings()
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lepton-probe-")))
        progress(0.0, "starting")
        engine = engine or stack.enter_context(start_engine(framework))
        group = _Group(engine, framework, scratch, cores, quick, clock)
        for index, setting in enumerate(settings):  # the first may add to them
            left = began + seconds - clock.monotonic_seconds()
            if left <= 0 and setting.parts == ("messages",) and found.messages:
                found.skipped.append(Skipped(setting=setting.words, kind="messages", size=()))
                continue
            group.run(
                setting,
                found,
                seconds=_kernel_seconds(settings[index:], left, reserved),
                message_seconds=reserved / num_messages,
                progress=_part_of(progress, index, len(settings) + 1, setting.words),
            )
            if index == 0 and found.num_gpus > 0:
                settings.insert(1, Setting(threads=1, num_busy=1, parts=("kernels",), device="cuda"))
        progress(len(settings) / (len(settings) + 1), "disk")
        disk = probe_disk(directory, quick=quick) if directory is not None else None
    progress(1.0, "done")
    measured = to_measured(found, framework, len(cores), disk, at_seconds=clock.now_seconds())
    return Probed(
        measured=measured,
        spreads=found.median_spreads(),
        skipped=tuple(found.skipped),
        seconds=clock.monotonic_seconds() - began,
    )


def _kernel_seconds(settings: Sequence[Setting], left_seconds: float, reserved_seconds: float) -> float:
    """What the first of these settings may use for kernels, when so much time is left for all of them."""
    num_kernels = sum("kernels" in setting.parts for setting in settings)
    if num_kernels == 0:
        return 0.0
    return max(LEAST_KERNEL_SECONDS, KERNEL_SHARE * (left_seconds - reserved_seconds) / num_kernels)


def settings_for(num_cores: int) -> tuple[Setting, ...]:
    """The ways of using so many cores that are measured.

    >>> [(each.threads, each.num_busy) for each in settings_for(2)]
    [(1, 1), (2, 1), (1, 2)]
    >>> [(each.threads, each.num_busy) for each in settings_for(8)]
    [(1, 1), (8, 1), (1, 8), (4, 2), (1, 4)]
    """
    settings = [Setting(threads=1, num_busy=1, parts=("calls", "kernels", "memory"))]
    if num_cores > 1:
        settings.append(Setting(threads=num_cores, num_busy=1, parts=("kernels", "memory")))
        settings.append(Setting(threads=1, num_busy=num_cores, parts=("kernels", "memory", "messages")))
    if num_cores >= 4:
        settings.append(Setting(threads=num_cores // 2, num_busy=2, parts=("kernels", "messages")))
    wanted = {2**power for power in range(1, num_cores.bit_length()) if 2**power <= num_cores} | {2}
    have = {each.num_busy for each in settings if "messages" in each.parts}
    settings += [Setting(threads=1, num_busy=size, parts=("messages",)) for size in sorted(wanted - have)]
    return tuple(settings)


class _Group:
    """Starts the workers of one setting after another, and gathers what they find."""

    def __init__(
        self,
        engine: LocalEngine,
        framework: FrameworkName,
        scratch: Path,
        cores: tuple[int, ...],
        quick: bool,
        clock: Clock,
    ) -> None:
        self._engine, self._framework, self._scratch = engine, framework, scratch
        self._cores, self._quick, self._clock = cores, quick, clock
        self._num_groups = 0

    def run(
        self, setting: Setting, found: Findings, *, seconds: float, message_seconds: float, progress: Progress
    ) -> None:
        """Have one setting measured, to its end."""
        self._num_groups += 1
        names = [f"probe-{self._num_groups}-{rank}" for rank in range(setting.num_busy)]
        asked = self._clock.monotonic_seconds()
        alone = found.alone() if setting.threads > 1 else {}
        with _shared_file(max(MESSAGE_BYTES)) as shared_fd:
            for rank, name in enumerate(names):
                given = {"seconds": seconds, "message_seconds": message_seconds, "alone": alone}
                self._engine.start(self._spec(setting, rank, name, shared_fd, given))
            try:
                results = self._await(names, progress, asked, found)
            finally:
                self._engine.stop_workers()
        gather(found, setting, [results[name] for name in names])

    def _spec(
        self, setting: Setting, rank: int, name: str, shared_fd: int, given: Mapping[str, Any]
    ) -> WorkerSpec:
        wanted = setting.threads * setting.num_busy
        first = rank * setting.threads
        return WorkerSpec(
            name=name,
            assignment={
                "role": "probe",
                "framework": self._framework,
                "threads": setting.threads,
                "device": setting.device,
                "rank": rank,
                "num_workers": setting.num_busy,
                "rendezvous": str(self._scratch / f"rendezvous-{self._num_groups}"),
                "parts": list(setting.parts),
                "quick": self._quick,
                **given,
            },
            fds=[shared_fd],
            log=self._scratch / f"{name}.log",
            # As a plan places workers: each on cores of its own, where there are enough.
            cores=self._cores[first : first + setting.threads] if wanted <= len(self._cores) else (),
            environment={
                **worker_environment(setting.threads, self._scratch),
                "TMPDIR": str(self._scratch),
            },
        )

    def _await(
        self, names: Sequence[str], progress: Progress, asked: float, found: Findings
    ) -> dict[str, Mapping[str, Any]]:
        results: dict[str, Mapping[str, Any]] = {}
        running = set(names)
        heard = self._clock.monotonic_seconds()
        while running:
            for report in self._engine.poll(POLL_SECONDS):
                heard = self._clock.monotonic_seconds()
                if isinstance(report, Message):
                    self._hear(report, results, progress, asked, found)
                elif isinstance(report, Exited):
                    running.discard(report.name)
                    if report.name not in results:
                        log = tail(self._scratch / f"{report.name}.log")
                        raise Fault("a worker of the probe died", detail=log or None)
            if self._clock.monotonic_seconds() - heard > SILENT_SECONDS:
                raise Fault(f"the probe's workers said nothing for {SILENT_SECONDS:.0f} s")
        return results

    def _hear(
        self,
        report: Message,
        results: dict[str, Mapping[str, Any]],
        progress: Progress,
        asked: float,
        found: Findings,
    ) -> None:
        values = report.values
        if "failed" in values:
            raise to_error(Failure(rank=0, **values["failed"]))
        if "ready" in values:
            found.ready.append(values["ready"] - asked)
        elif "probed" in values:
            results[report.name] = values["probed"]
        elif report.name.endswith("-0"):
            progress(values["progress"], values["part"])


@contextlib.contextmanager
def _shared_file(num_bytes: int) -> Iterator[int]:
    fd = os.memfd_create("lepton-probe", os.MFD_CLOEXEC)
    try:
        os.ftruncate(fd, num_bytes)
        yield fd
    finally:
        os.close(fd)


def _part_of(progress: Progress, index: int, total: int, words: str) -> Progress:
    def told(share: float, doing: str) -> None:
        progress((index + share) / total, f"{doing}, {words}")

    return told
