from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.core import units
from leptonai.core.errors import InputError

NUMBERS = st.floats(min_value=1e-3, max_value=1e12)


@pytest.mark.parametrize(
    ("parse", "text", "value"),
    [
        (units.parse_bytes, "80GiB", 80 * 2**30),
        (units.parse_bytes, "1.5GB", 1_500_000_000),
        (units.parse_bytes, "512MiB", 512 * 2**20),
        (units.parse_bytes, "1KB", 1000),
        (units.parse_bytes, "1 KiB", 1024),
        (units.parse_bytes, "0B", 0),
        (units.parse_bytes_per_second, "10Gb/s", 1.25e9),
        (units.parse_bytes_per_second, "1.2GB/s", 1.2e9),
        (units.parse_bytes_per_second, "8b/s", 1.0),
        (units.parse_flops, "312 TFLOP/s", 312e12),
        (units.parse_seconds, "50us", 50e-6),
        (units.parse_seconds, "2ms", 2e-3),
        (units.parse_seconds, "30s", 30.0),
        (units.parse_seconds, "5min", 300.0),
    ],
)
def test_a_quantity_has_the_value_its_unit_says(
    parse: Callable[[str], float], text: str, value: float
) -> None:
    assert parse(text) == value


@pytest.mark.parametrize(
    ("parse", "text", "message", "hint"),
    [
        (units.parse_bytes, "80", "has no unit", "80GiB"),
        (units.parse_bytes, "80 parsecs", "'parsecs' is not a unit of a size", "GiB"),
        (units.parse_bytes, "80gib", "'gib' is not a unit", "did you mean GiB?"),
        (units.parse_bytes, "-1GB", "is not a size", "80GiB"),
        (units.parse_bytes, "", "is not a size", "80GiB"),
        (units.parse_bytes, "1e999GB", "is too large", "80GiB"),
        (units.parse_bytes, "9" * 100 + "B", "is not a size", "80GiB"),
        (units.parse_bytes_per_second, "10Gb", "'Gb' is not a unit of a rate", "Gb/s"),
        (units.parse_bytes_per_second, "10gb/s", "'gb/s' is not a unit", "did you mean GB/s or Gb/s?"),
        (units.parse_flops, "3GHz", "'GHz' is not a unit", "TFLOP/s"),
        (units.parse_seconds, "5m", "'m' is not a unit of a duration", "ms, s, min"),
        (units.parse_seconds, "٣s", "is not a duration", "30s"),
    ],
)
def test_a_wrong_quantity_is_refused_with_the_right_units(
    parse: Callable[[str], float], text: str, message: str, hint: str
) -> None:
    with pytest.raises(InputError) as caught:
        parse(text)
    assert message in caught.value.message
    assert hint in (caught.value.hint or "")


@given(st.integers(0, 2**60))
def test_a_size_in_bytes_reads_back_exactly(value: int) -> None:
    assert units.parse_bytes(f"{value}B") == value


@given(st.integers(0, 2**50))
def test_a_formatted_size_reads_back_to_three_digits(value: int) -> None:
    assert math.isclose(units.parse_bytes(units.format_bytes(value)), value, rel_tol=0.005, abs_tol=0.5)


@pytest.mark.parametrize(
    ("parse", "form"),
    [
        (units.parse_bytes_per_second, units.format_rate),
        (units.parse_flops, units.format_flops),
        (units.parse_seconds, units.format_seconds),
    ],
)
@given(value=NUMBERS)
def test_a_formatted_quantity_reads_back_to_three_digits(
    parse: Callable[[str], float], form: Callable[[float], str], value: float
) -> None:
    assert math.isclose(parse(form(value)), value, rel_tol=0.006)


@given(st.text(max_size=80))
def test_any_text_is_a_size_or_an_input_error(text: str) -> None:
    try:
        value = units.parse_bytes(text)
    except InputError:
        return
    assert value >= 0
