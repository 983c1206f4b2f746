"""Field types for models of files: quantities that must carry their unit.

Apart from :mod:`leptonai.core.units`, so that code which only formats need not load pydantic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from pydantic import BeforeValidator

from leptonai.core.errors import InputError
from leptonai.core.files import problem
from leptonai.core.units import parse_bytes, parse_bytes_per_second, parse_flops, parse_seconds


def _field(parse: Callable[[str], float], example: str) -> BeforeValidator:
    def check(value: object) -> float:
        if not isinstance(value, str):
            raise problem(f"{value!r} has no unit", hint=f"write it with a unit, such as {example}")
        try:
            return parse(value)
        except InputError as error:
            raise problem(error.message, hint=error.hint) from error

    return BeforeValidator(check)


ByteSize = Annotated[int, _field(parse_bytes, "80GiB")]
ByteRate = Annotated[float, _field(parse_bytes_per_second, "10Gb/s")]
FlopRate = Annotated[float, _field(parse_flops, "312TFLOP/s")]
Duration = Annotated[float, _field(parse_seconds, "30s")]
