"""Latency and bandwidth of transfers from times measured by size: the alpha-beta law, fitted."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from leptonai.compute.measured import TransferFit
from leptonai.core.errors import InputError


def fit_transfer(
    kind: str,
    samples: Sequence[tuple[float, float]],
    *,
    num_workers: int = 2,
    ends: tuple[str, ...] = (),
) -> TransferFit:
    """The line ``seconds = latency + bytes / bandwidth`` nearest to the samples.

    Distances are relative to each sample's time, so that small messages count as much as large ones; neither
    number can become negative: where the best line would have a negative one, the best with zero is taken.

    Args:
        kind: what was moved, as :class:`~leptonai.compute.measured.TransferFit` lists them.
        samples: (bytes, seconds), two or more, of at least two sizes; seconds > 0.
        num_workers: that took part.
        ends: of a link.

    Raises:
        InputError: too few samples, a time or size out of range, or times that do not grow with size at all.

    Source: Hockney 1994, "The communication challenge for MPP"; weighted least squares in closed form.

    >>> fit = fit_transfer("link", [(0.0, 1e-5), (1e6, 1.01e-3), (2e6, 2.01e-3)])
    >>> f"{fit.latency_seconds:.1e} {fit.bandwidth_bytes_per_second:.1e}"
    '1.0e-05 1.0e+09'
    """
    if len({size for size, _ in samples}) < 2:
        raise InputError(f"{kind}: expected times of two sizes or more, found {len(samples)} samples")
    for size, seconds in samples:
        if not (size >= 0 and seconds > 0 and math.isfinite(size) and math.isfinite(seconds)):
            raise InputError(f"{kind}: expected bytes >= 0 and seconds > 0, found {size} and {seconds}")
    latency, seconds_per_byte = _line(samples)
    if seconds_per_byte <= 0:
        raise InputError(
            f"{kind}: larger messages take no longer, so there is no bandwidth",
            hint="measure again, with larger messages",
        )
    errors = [abs(latency + size * seconds_per_byte - seconds) / seconds for size, seconds in samples]
    return TransferFit(
        kind=kind,
        ends=ends,
        num_workers=num_workers,
        latency_seconds=latency,
        bandwidth_bytes_per_second=1.0 / seconds_per_byte,
        error=statistics.median(errors),
        samples=tuple((float(size), float(seconds)) for size, seconds in samples),
    )


def _line(samples: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """(latency, seconds per byte), both >= 0, that minimise the sum of squared relative distances."""
    # With a = 1 / seconds and b = bytes / seconds of each sample: minimise sum (latency a + rate b - 1)^2.
    a = [1.0 / seconds for _, seconds in samples]
    b = [size / seconds for size, seconds in samples]
    aa, ab, bb = _dot(a, a), _dot(a, b), _dot(b, b)
    sum_a, sum_b = sum(a), sum(b)
    determinant = aa * bb - ab * ab
    if determinant > 0:
        latency = (sum_a * bb - sum_b * ab) / determinant
        rate = (sum_b * aa - sum_a * ab) / determinant
        if latency >= 0 and rate >= 0:
            return latency, rate
    # The best of a convex function lies on the border when it is not inside.
    ends = [(0.0, sum_b / bb), (sum_a / aa, 0.0)]
    return min(
        ends, key=lambda end: sum((end[0] * x + end[1] * y - 1) ** 2 for x, y in zip(a, b, strict=True))
    )


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    return sum(x * y for x, y in zip(left, right, strict=True))
