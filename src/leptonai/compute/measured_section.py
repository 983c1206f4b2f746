"""The ``measured:`` section of a cluster file: strict models of what a probe found, and its text.

Times and rates keep their exact decimal digits, so that what is written is what is read. Kernels are lines of
words rather than mappings: there are hundreds, and YAML reads a line of text several times faster.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator, Field

from leptonai.compute.measured import Measured, RateSample, TransferFit
from leptonai.core.errors import InputError
from leptonai.core.fields import ByteRate, Duration
from leptonai.core.files import FileModel, problem
from leptonai.core.units import parse_bytes, parse_seconds

KERNEL_EXAMPLE = "matmul 128x256x64 float32 forward threads=1 busy=2 104.2us"
SAMPLE_EXAMPLE = "4096B 35.7us"
_KERNEL = re.compile(
    r"([a-z_]{1,40}) ([0-9]{1,18}(?:x[0-9]{1,18}){0,7}) ([a-z0-9]{1,20}) (forward|backward) "
    r"threads=([0-9]{1,6}) busy=([0-9]{1,6}) (\S+)",
    re.ASCII,
)
_MICRO, _GIGA = Decimal("1e-6"), Decimal(10**9)
# Numbers of more digits than these before or after the point are written with an exponent.
_MOST_DIGITS = 12


def _checked(parse: Callable[[str], object]) -> AfterValidator:
    def check(text: str) -> str:
        try:
            parse(text)
        except InputError as error:
            raise problem(error.message, hint=error.hint) from error
        return text

    return AfterValidator(check)


def parse_kernel(text: str) -> RateSample:
    """One timed kernel from its line.

    Raises:
        InputError: the line has another form, or a number outside its range.

    >>> parse_kernel("matmul 128x256x64 float32 forward threads=1 busy=2 104.2us").dims
    (128, 256, 64)
    """
    found = _KERNEL.fullmatch(text)
    if found is None:
        raise InputError(f"{text[:64]!r} is not a timed kernel", hint=f"such as: {KERNEL_EXAMPLE}")
    kind, dims, precision, direction, threads, busy, seconds = found.groups()
    if int(threads) < 1 or int(busy) < 1:
        raise InputError(f"{text[:64]!r}: expected threads and busy >= 1")
    return RateSample(
        kind=kind,
        dims=tuple(int(dim) for dim in dims.split("x")),
        precision=precision,
        backward=direction == "backward",
        threads=int(threads),
        num_busy=int(busy),
        seconds=parse_seconds(seconds),
    )


def kernel_text(sample: RateSample) -> str:
    """Inverse of :func:`parse_kernel`."""
    dims = "x".join(str(dim) for dim in sample.dims)
    direction = "backward" if sample.backward else "forward"
    return (
        f"{sample.kind} {dims} {sample.precision} {direction} threads={sample.threads} "
        f"busy={sample.num_busy} {_time(sample.seconds)}"
    )


def _parse_sample(text: str) -> tuple[float, float]:
    size, separator, seconds = text.partition(" ")
    if not separator:
        raise InputError(f"{text[:40]!r} is not bytes and a time", hint=f"such as: {SAMPLE_EXAMPLE}")
    return float(parse_bytes(size)), parse_seconds(seconds)


def _parse_moment(text: str) -> float:
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise InputError(f"{text[:40]!r} is no moment", hint="such as 2026-11-23T20:02:02Z") from None
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


class MemoryFile(FileModel):
    """What threads together move to and from memory."""

    threads: int = Field(ge=1, description="How many.")
    rate: ByteRate = Field(gt=0, description="Bytes a second, read and written.")


class DiskFile(FileModel):
    """The disk of the home directory."""

    write: ByteRate = Field(gt=0, description="Writing a large file, with fsync at its end.")
    read: ByteRate = Field(gt=0, description="Reading it.")
    sync: Duration = Field(description="One fsync of a small file.")


class TransferFile(FileModel):
    """One kind of message: time = latency + bytes / bandwidth."""

    kind: str = Field(min_length=1, description="Such as `all-reduce`, `loopback`, `link`.")
    workers: int = Field(default=2, ge=1, description="That took part.")
    between: tuple[str, ...] = Field(default=(), description="Of a link: its two nodes.")
    latency: Duration = Field(description="Of the smallest message.")
    bandwidth: ByteRate = Field(gt=0, description="Of the message, whatever is sent to move or sum it.")
    error: float = Field(
        default=0.0, ge=0, description="Median relative distance of the samples from the fit."
    )
    samples: tuple[Annotated[str, _checked(_parse_sample)], ...] = Field(
        default=(), description=f"Bytes and time, such as `{SAMPLE_EXAMPLE}`."
    )

    def to_fit(self) -> TransferFit:
        """The frozen value."""
        return TransferFit(
            kind=self.kind,
            num_workers=self.workers,
            ends=self.between,
            latency_seconds=self.latency,
            bandwidth_bytes_per_second=self.bandwidth,
            error=self.error,
            samples=tuple(_parse_sample(text) for text in self.samples),
        )


class MeasuredSection(FileModel):
    """What `lepton cluster probe` found on this machine."""

    at: Annotated[str, _checked(_parse_moment)] = Field(description="When, ISO 8601.")
    cores: int = Field(ge=1, description="Cores that were free to use.")
    versions: dict[str, str] = Field(default={}, description="Of what computed.")
    memory: tuple[MemoryFile, ...] = Field(default=(), description="Memory bandwidth by threads.")
    calls: dict[str, Duration] = Field(
        default={}, description="Smallest call, forward and backward, by framework."
    )
    start: dict[str, Duration] = Field(
        default={}, description="From asking for a worker to its first step, by framework."
    )
    disk: DiskFile | None = Field(default=None, description="Left out: not measured.")
    transfers: tuple[TransferFile, ...] = Field(default=(), description="Messages, fitted.")
    kernels: tuple[Annotated[str, _checked(parse_kernel)], ...] = Field(
        default=(), description=f"Timed kernels, such as `{KERNEL_EXAMPLE}`."
    )

    def to_measured(self) -> Measured:
        """The frozen value."""
        disk = self.disk
        return Measured(
            at_seconds=_parse_moment(self.at),
            cores=self.cores,
            kernels=tuple(parse_kernel(text) for text in self.kernels),
            transfers=tuple(each.to_fit() for each in self.transfers),
            memory_bytes_per_second=tuple((each.threads, each.rate) for each in self.memory),
            call_seconds=tuple(self.calls.items()),
            disk_write_bytes_per_second=disk.write if disk else 0.0,
            disk_read_bytes_per_second=disk.read if disk else 0.0,
            sync_seconds=disk.sync if disk else 0.0,
            start_seconds=tuple(self.start.items()),
            versions=tuple(self.versions.items()),
        )


def section_text(measured: Measured) -> str:
    """The section as YAML, which :class:`MeasuredSection` reads back to an equal value.

    Sizes of samples are written as whole bytes, the moment as whole microseconds; a disk without a rate is left out.
    """
    return "\n".join(["measured:", *(f"  {line}" for line in _lines(measured))]) + "\n"


def _lines(measured: Measured) -> Iterator[str]:
    moment = datetime.fromtimestamp(measured.at_seconds, UTC).isoformat().replace("+00:00", "Z")
    yield f"at: {_quoted(moment)}"
    yield f"cores: {measured.cores}"
    yield f"versions: {_flow({name: _quoted(value) for name, value in measured.versions})}"
    yield "memory:" + (" []" if not measured.memory_bytes_per_second else "")
    for threads, rate in measured.memory_bytes_per_second:
        yield f"  - {{threads: {threads}, rate: {_rate(rate)}}}"
    yield f"calls: {_flow({name: _time(seconds) for name, seconds in measured.call_seconds})}"
    yield f"start: {_flow({name: _time(seconds) for name, seconds in measured.start_seconds})}"
    if measured.disk_write_bytes_per_second > 0 and measured.disk_read_bytes_per_second > 0:
        write, read = measured.disk_write_bytes_per_second, measured.disk_read_bytes_per_second
        yield f"disk: {{write: {_rate(write)}, read: {_rate(read)}, sync: {_time(measured.sync_seconds)}}}"
    yield "transfers:" + (" []" if not measured.transfers else "")
    for fit in measured.transfers:
        yield from _transfer(fit)
    yield "kernels:" + (" []" if not measured.kernels else "")
    yield from (f"  - {kernel_text(sample)}" for sample in measured.kernels)


def _transfer(fit: TransferFit) -> Iterator[str]:
    yield f"  - kind: {_quoted(fit.kind)}"
    yield f"    workers: {fit.num_workers}"
    if fit.ends:
        yield f"    between: [{', '.join(_quoted(end) for end in fit.ends)}]"
    yield f"    latency: {_time(fit.latency_seconds)}"
    yield f"    bandwidth: {_rate(fit.bandwidth_bytes_per_second)}"
    yield f"    error: {fit.error!r}"
    samples = ", ".join(f"{round(size)}B {_time(seconds)}" for size, seconds in fit.samples)
    yield f"    samples: [{samples}]"


def _flow(values: Mapping[str, str]) -> str:
    return "{" + ", ".join(f"{_quoted(name)}: {value}" for name, value in values.items()) + "}"


def _quoted(text: str) -> str:
    """Text in double quotes; JSON's escapes are YAML's too, but for what neither shows as it is."""
    quoted = json.dumps(text, ensure_ascii=False)
    return "".join(each if each.isprintable() else f"\\U{ord(each):08x}" for each in quoted)


def _time(seconds: float) -> str:
    return f"{_digits(Decimal(repr(seconds)) / _MICRO)}us"


def _rate(bytes_per_second: float) -> str:
    return f"{_digits(Decimal(repr(bytes_per_second)) / _GIGA)}GB/s"


def _digits(value: Decimal) -> str:
    plain = value.normalize()
    if abs(plain.adjusted()) < _MOST_DIGITS:
        return format(plain, "f")
    return str(plain)
