"""What workers of a probe report, gathered and made into one :class:`~leptonai.compute.measured.Measured`."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from leptonai.compute.fitting_transfers import fit_transfer
from leptonai.compute.measured import Measured, RateSample, TransferFit
from leptonai.compute.probe_cases import key_of
from leptonai.core.errors import Fault, InputError
from leptonai.launch.probe_disk import DiskRates

# Digits that are kept: what is measured is never better known, and files stay short.
KEPT_DIGITS = 4
FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One way of using the machine: so many processes at once, each with so many threads.

    Args:
        threads: compute threads of each process, >= 1.
        num_busy: processes, >= 1.
        parts: what they measure.
        device: ``cpu`` or ``cuda``.
    """

    threads: int
    num_busy: int
    parts: tuple[str, ...]
    device: str = "cpu"

    @property
    def words(self) -> str:
        """For people, such as ``2 processes x 1 thread``."""
        processes = f"{self.num_busy} process{'es' if self.num_busy > 1 else ''}"
        if self.device != "cpu":
            return self.device
        return f"{processes} x {self.threads} thread{'s' if self.threads > 1 else ''}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How noisy one kind of sample was in one setting.

    Args:
        setting: in words.
        kind: of kernel or message, or ``memory``.
        value: the median over the samples of the distance between quartiles, relative to the median.
    """

    setting: str
    kind: str
    value: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Skipped:
    """A size that was not measured.

    Args:
        setting: in words.
        kind: of kernel or message.
        size: dims, or bytes.
        precision: of a kernel.
        backward: of a kernel.
        why: ``no time left``; ``too slow``, as one call would take too long; or ``disturbed``, as its threads
            had to wait for cores whenever it was tried.
    """

    setting: str
    kind: str
    size: tuple[int, ...]
    precision: str = ""
    backward: bool = False
    why: str = "no time left"


@dataclass(slots=True)
class Findings:
    """Gathers what groups report."""

    kernels: list[RateSample] = field(default_factory=list)
    messages: dict[tuple[str, int], list[tuple[float, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    memory: dict[int, float] = field(default_factory=dict)
    calls: float = 0.0
    num_gpus: int = 0
    ready: list[float] = field(default_factory=list)
    versions: dict[str, str] = field(default_factory=dict)
    spreads: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    skipped: list[Skipped] = field(default_factory=list)

    def alone(self) -> dict[str, float]:
        """By key of a case: its seconds with one thread, when nothing else computes."""
        return {
            key_of(each.kind, each.precision, each.backward, each.dims): each.seconds
            for each in self.kernels
            if (each.threads, each.num_busy) == (1, 1)
        }

    def median_spreads(self) -> tuple[Spread, ...]:
        """Of all that was measured, by setting: the median spread of its samples."""
        return tuple(
            Spread(setting=setting, kind=kind, value=kept(statistics.median(each)))
            for (setting, kind), each in self.spreads.items()
            if each
        )


def with_links(measured: Measured, pairs: Sequence[tuple[str, str]]) -> Measured:
    """Adds a link between each pair of nodes of this machine: what TCP on loopback was found to be."""
    loopback = next((fit for fit in measured.transfers if fit.kind == "loopback"), None)
    if loopback is None:
        return measured
    links = tuple(replace(loopback, kind="link", ends=pair) for pair in pairs)
    return replace(measured, transfers=(*measured.transfers, *links))


def gather(found: Findings, setting: Setting, results: Sequence[Mapping[str, Any]]) -> None:
    """Take up what all workers of a setting found; where each has its own time, their mean is taken."""
    found.versions.update(results[0]["versions"])
    found.num_gpus = max(found.num_gpus, results[0]["num_gpus"])
    if "kernels" in results[0]:
        _gather_kernels(found, setting, [result["kernels"] for result in results])
    if results[0].get("calls"):
        _gather_calls(found, setting, results[0]["calls"])
    if "memory" in results[0]:
        rate = sum(result["memory"]["bytes_per_second"] for result in results)
        num_threads = setting.threads * setting.num_busy
        found.memory[num_threads] = kept(max(rate, found.memory.get(num_threads, 0.0)))
        found.spreads[setting.words, "memory"] += [result["memory"]["spread"] for result in results]
    if "messages" in results[0]:
        for message in results[0]["messages"]["timed"]:
            found.messages[message["kind"], message["num_workers"]].append(
                (float(message["bytes"]), kept(message["seconds"]))
            )
            found.spreads[setting.words, message["kind"]].append(message["spread"])
        for message in results[0]["messages"]["skipped"]:
            found.skipped.append(
                Skipped(setting=setting.words, kind=message["kind"], size=(message["bytes"],))
            )


def _gather_kernels(found: Findings, setting: Setting, results: Sequence[Mapping[str, Any]]) -> None:
    prefix = "" if setting.device == "cpu" else f"{setting.device}_"
    for samples in zip(*(result["timed"] for result in results), strict=True):
        first = samples[0]
        kind = prefix + first["kind"]
        found.kernels.append(
            RateSample(
                kind=kind,
                dims=tuple(first["dims"]),
                precision=first["precision"],
                backward=first["backward"],
                threads=setting.threads,
                num_busy=setting.num_busy,
                seconds=kept(statistics.mean(sample["seconds"] for sample in samples)),
            )
        )
        found.spreads[setting.words, kind] += [sample["spread"] for sample in samples]
    for each in results[0]["skipped"]:
        found.skipped.append(
            Skipped(
                setting=setting.words, kind=prefix + each["kind"], size=tuple(each["dims"]),
                precision=each["precision"], backward=each["backward"], why=each["why"],
            )
        )  # fmt: skip


def _gather_calls(found: Findings, setting: Setting, calls: Mapping[str, float]) -> None:
    found.calls = calls["forward"] + calls["backward"]
    found.spreads[setting.words, "call"].append(calls["spread"])
    for kind, passes in (("call", "forward"), ("call", "backward"), ("pass", "fixed")):
        if calls[passes] > 0:
            found.kernels.append(
                RateSample(kind=kind, dims=(1,), seconds=kept(calls[passes]), backward=passes != "forward")
            )


def to_measured(
    found: Findings, framework: str, cores: int, disk: DiskRates | None, *, at_seconds: float
) -> Measured:
    transfers = []
    for (kind, num_workers), samples in found.messages.items():
        try:
            transfers.append(_fit(kind, undisturbed(samples), num_workers=num_workers))
        except Fault:
            words = f"{num_workers} workers"
            found.skipped.append(Skipped(setting=words, kind=kind, size=(), why="disturbed"))
    copies = [
        (float(FLOAT_BYTES * sample.dims[0]), sample.seconds)
        for sample in found.kernels
        if sample.kind == "copy" and (sample.threads, sample.num_busy) == (1, 1)
    ]
    if len(copies) > 1:  # there was time for more than one size
        try:
            transfers.insert(0, _fit("memory copy", undisturbed(copies), num_workers=1))
        except Fault:
            found.skipped.append(Skipped(setting="1 worker", kind="memory copy", size=(), why="disturbed"))
    return Measured(
        at_seconds=round(at_seconds),
        cores=cores,
        kernels=tuple(sorted(found.kernels, key=_order)),
        transfers=tuple(transfers),
        memory_bytes_per_second=tuple(sorted(found.memory.items())),
        call_seconds=((framework, kept(found.calls)),),
        disk_write_bytes_per_second=kept(disk.write_bytes_per_second) if disk else 0.0,
        disk_read_bytes_per_second=kept(disk.read_bytes_per_second) if disk else 0.0,
        sync_seconds=kept(disk.sync_seconds) if disk else 0.0,
        # The first group also waits for the engine's imports; the last is what a running engine needs.
        start_seconds=(("engine", kept(found.ready[0])), (framework, kept(found.ready[-1]))),
        versions=tuple(sorted(found.versions.items())),
    )


def _order(sample: RateSample) -> tuple[object, ...]:
    return (
        sample.num_busy, sample.threads, sample.precision != "float32", sample.kind, sample.backward, sample.dims,
    )  # fmt: skip


def undisturbed(samples: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Times by size in which none is longer than that of a larger message: what is beyond that, others added.

    >>> undisturbed([(8.0, 3e-3), (64.0, 1e-3), (512.0, 2e-3)])
    [(8.0, 0.001), (64.0, 0.001), (512.0, 0.002)]
    """
    found: list[tuple[float, float]] = []
    for size, seconds in sorted(samples, reverse=True):
        found.append((size, min(seconds, found[-1][1]) if found else seconds))
    return found[::-1]


def _fit(kind: str, samples: list[tuple[float, float]], *, num_workers: int) -> TransferFit:
    try:
        fit = fit_transfer(kind, sorted(samples), num_workers=num_workers)
    except InputError as error:
        raise Fault(
            f"the machine was too busy to be measured: {error.message}",
            hint="measure again when nothing else runs",
        ) from error
    return replace(
        fit,
        latency_seconds=kept(fit.latency_seconds),
        bandwidth_bytes_per_second=kept(fit.bandwidth_bytes_per_second),
        error=kept(fit.error),
    )


def kept(value: float) -> float:
    """A value to the digits that are kept.

    >>> kept(0.000123456)
    0.0001235
    """
    return float(f"{value:.{KEPT_DIGITS}g}")
