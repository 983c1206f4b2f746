from __future__ import annotations

import pytest
from pydantic import TypeAdapter, ValidationError

from leptonai.core import fields


@pytest.mark.parametrize("kind", [fields.ByteSize, fields.ByteRate, fields.FlopRate, fields.Duration])
@pytest.mark.parametrize("value", [5, 5.0, True, None, ["1GB"]])
def test_a_field_refuses_a_plain_number(kind: type, value: object) -> None:
    with pytest.raises(ValidationError, match="has no unit"):
        TypeAdapter(kind).validate_python(value)


def test_a_field_takes_text_with_a_unit() -> None:
    assert TypeAdapter(fields.ByteSize).validate_python("1KiB") == 1024
    assert TypeAdapter(fields.Duration).validate_python("1min") == 60.0
