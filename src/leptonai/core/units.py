"""Sizes, rates, FLOP/s and durations with their units, as people write them in files.

``KB`` is 1000 bytes and ``KiB`` 1024; ``b`` is a bit and ``B`` a byte.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal

from leptonai.core.errors import InputError

_DECIMAL = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "P": 10**15}
_BINARY = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40, "Pi": 2**50}
_PREFIXES = {**_DECIMAL, **_BINARY}

SIZE_UNITS: Mapping[str, Decimal] = {f"{prefix}B": Decimal(factor) for prefix, factor in _PREFIXES.items()}
RATE_UNITS: Mapping[str, Decimal] = {
    **{f"{prefix}B/s": Decimal(factor) for prefix, factor in _PREFIXES.items()},
    **{f"{prefix}b/s": Decimal(factor) / 8 for prefix, factor in _PREFIXES.items()},
}
FLOP_UNITS: Mapping[str, Decimal] = {
    f"{prefix}FLOP/s": Decimal(factor) for prefix, factor in {**_DECIMAL, "E": 10**18}.items()
}
DURATION_UNITS: Mapping[str, Decimal] = {
    "ns": Decimal("1e-9"),
    "us": Decimal("1e-6"),
    "ms": Decimal("1e-3"),
    "s": Decimal(1),
    "min": Decimal(60),
    "h": Decimal(3600),
}

_QUANTITY = re.compile(
    r"\s*([0-9]+(?:\.[0-9]+)?(?:[eE][-+]?[0-9]{1,3})?)\s*([^\s0-9].*?)?\s*", re.ASCII | re.DOTALL
)
_LARGEST = Decimal(2**63 - 1)


def parse_bytes(text: str) -> int:
    """Bytes of a size; a fraction of a byte is rounded.

    Raises:
        InputError: no unit, a wrong one, or not a number.

    >>> parse_bytes("80GiB"), parse_bytes("1.5 GB")
    (85899345920, 1500000000)
    """
    return int(_parse(text, SIZE_UNITS, what="size", example="80GiB").to_integral_value())


def parse_bytes_per_second(text: str) -> float:
    """Bytes per second of a rate in bits or bytes.

    Raises:
        InputError: no unit, a wrong one, or not a number.

    >>> parse_bytes_per_second("10Gb/s"), parse_bytes_per_second("1.2GB/s")
    (1250000000.0, 1200000000.0)
    """
    return float(_parse(text, RATE_UNITS, what="rate", example="10Gb/s"))


def parse_flops(text: str) -> float:
    """Floating-point operations per second.

    Raises:
        InputError: no unit, a wrong one, or not a number.

    >>> parse_flops("312 TFLOP/s")
    312000000000000.0
    """
    return float(_parse(text, FLOP_UNITS, what="number of FLOP/s", example="312TFLOP/s"))


def parse_seconds(text: str) -> float:
    """Seconds of a duration.

    Raises:
        InputError: no unit, a wrong one, or not a number.

    >>> parse_seconds("50us"), parse_seconds("5min")
    (5e-05, 300.0)
    """
    return float(_parse(text, DURATION_UNITS, what="duration", example="30s"))


def format_bytes(value: float) -> str:
    """A size for people, to three digits.

    >>> format_bytes(1536), format_bytes(12)
    ('1.5 KiB', '12 B')
    """
    return _format(value, {"B": 1, **{f"{prefix}B": factor for prefix, factor in _BINARY.items()}})


def format_rate(bytes_per_second: float) -> str:
    """A rate in bytes for people, to three digits.

    >>> format_rate(1.4e9)
    '1.4 GB/s'
    """
    return _format(bytes_per_second, {f"{prefix}B/s": factor for prefix, factor in _DECIMAL.items()})


def format_flops(flops_per_second: float) -> str:
    """FLOP/s for people, to three digits.

    >>> format_flops(48e9)
    '48 GFLOP/s'
    """
    return _format(flops_per_second, {unit: float(factor) for unit, factor in FLOP_UNITS.items()})


def format_seconds(value: float) -> str:
    """A duration for people, to three digits.

    >>> format_seconds(0.0123), format_seconds(90)
    ('12.3 ms', '1.5 min')
    """
    return _format(value, {unit: float(factor) for unit, factor in DURATION_UNITS.items()})


def _parse(text: str, units: Mapping[str, Decimal], *, what: str, example: str) -> Decimal:
    hint = f"write a {what} with a unit, such as {example}; units: {', '.join(units)}"
    found = _QUANTITY.fullmatch(text) if len(text) <= 64 else None
    if found is None:
        raise InputError(f"{text[:64]!r} is not a {what}", hint=hint)
    number, unit = found.groups()
    if unit is None:
        raise InputError(f"{text!r} has no unit", hint=hint)
    if unit not in units:
        near = [name for name in units if name.lower() == unit.lower()]
        message = f"{unit!r} is not a unit of a {what}"
        raise InputError(message, hint=f"did you mean {' or '.join(near)}?" if near else hint)
    value = Decimal(number) * units[unit]
    if value > _LARGEST:
        raise InputError(f"{text!r} is too large for a {what}", hint=hint)
    return value


def _format(value: float, units: Mapping[str, float]) -> str:
    """``value`` in the largest unit that leaves at least 1 of it."""
    unit = next(iter(units))
    for name, factor in units.items():
        if value >= factor:
            unit = name
    scaled = value / units[unit]
    return f"{scaled:.0f} {unit}" if scaled >= 100 else f"{scaled:.3g} {unit}"
