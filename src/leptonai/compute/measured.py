"""What a probe found on the machines at hand: rates, links, collectives, disk and start-up, as values."""

from __future__ import annotations

from dataclasses import dataclass

from leptonai.core.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class RateSample:
    """One kernel timed at one size.

    Args:
        kind: ``matmul`` (dims m, k, n), ``convolution`` (images, input channels, output channels, kernel positions,
            output positions, groups), or ``elementwise`` (elements).
        precision: such as ``float32``.
        threads: compute threads, >= 1.
        num_busy: processes that computed at the same time, each with as many threads, >= 1.
        dims: its size.
        seconds: of one call when nothing disturbs it, > 0.
        backward: whether it was the gradient of that kernel.
    """

    kind: str
    dims: tuple[int, ...]
    seconds: float
    precision: str = "float32"
    threads: int = 1
    num_busy: int = 1
    backward: bool = False

    def __post_init__(self) -> None:
        if not self.seconds > 0:
            raise InputError(f"RateSample: expected seconds > 0, found {self.seconds}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TransferFit:
    """Time of a message by its size: ``seconds = latency + bytes / bandwidth`` (Hockney 1994).

    Args:
        kind: ``memory copy``, ``shared memory``, ``loopback``, ``link``, ``all-reduce``, ``broadcast``, ``push-pull``.
        ends: names of two nodes for a link; empty otherwise.
        num_workers: that took part, >= 1.
        latency_seconds: >= 0.
        bandwidth_bytes_per_second: > 0; for a collective, of the message, whatever is sent to sum it.
        error: median relative distance of what was measured from the fit.
        samples: (bytes, seconds) measured.
    """

    kind: str
    latency_seconds: float
    bandwidth_bytes_per_second: float
    num_workers: int = 2
    ends: tuple[str, ...] = ()
    error: float = 0.0
    samples: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if self.latency_seconds < 0 or not self.bandwidth_bytes_per_second > 0:
            raise InputError(
                f"TransferFit: expected latency >= 0 and bandwidth > 0, found {self.latency_seconds} "
                f"and {self.bandwidth_bytes_per_second}"
            )

    def seconds(self, num_bytes: float) -> float:
        """What a message of this size takes."""
        return self.latency_seconds + num_bytes / self.bandwidth_bytes_per_second


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One machine, measured.

    Args:
        at_seconds: when, seconds since 1970.
        cores: cores that were free to use, >= 1.
        kernels: timed kernels.
        transfers: fitted transfers.
        memory_bytes_per_second: by threads: what that many threads together move.
        call_seconds: time of a framework's smallest call in a forward and backward pass, by framework.
        disk_write_bytes_per_second: with fsync; 0: not measured.
        disk_read_bytes_per_second: 0: not measured.
        sync_seconds: of one fsync of a small file.
        start_seconds: from asking for a worker to its first step, by framework.
        versions: of what computed, such as {"torch": "2.13.0"}.
    """

    at_seconds: float
    cores: int
    kernels: tuple[RateSample, ...] = ()
    transfers: tuple[TransferFit, ...] = ()
    memory_bytes_per_second: tuple[tuple[int, float], ...] = ()
    call_seconds: tuple[tuple[str, float], ...] = ()
    disk_write_bytes_per_second: float = 0.0
    disk_read_bytes_per_second: float = 0.0
    sync_seconds: float = 0.0
    start_seconds: tuple[tuple[str, float], ...] = ()
    versions: tuple[tuple[str, str], ...] = ()

    @property
    def framework(self) -> str:
        """Whose kernels were timed, such as ``pytorch``; empty: nobody's."""
        return self.call_seconds[0][0] if self.call_seconds else ""
