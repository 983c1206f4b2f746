from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.core.errors import InputError
from leptonai.core.values import value_from_json, value_to_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    name: str
    mode: Literal["fast", "slow"] = "fast"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    count: int
    share: float
    on: bool
    maybe: int | None
    inner: Inner
    many: tuple[Inner, ...] = ()

    def __post_init__(self) -> None:
        if self.count < 0:
            raise InputError("Outer: expected count >= 0")


INNER = st.builds(Inner, name=st.text(), mode=st.sampled_from(["fast", "slow"]))
OUTER = st.builds(
    Outer,
    count=st.integers(0),
    share=st.floats(allow_nan=False, allow_infinity=False),
    on=st.booleans(),
    maybe=st.none() | st.integers(),
    inner=INNER,
    many=st.lists(INNER, max_size=3).map(tuple),
)
GOOD: dict[str, Any] = {
    "count": 1, "share": 0.5, "on": True, "maybe": None, "inner": {"name": "x", "mode": "slow"}, "many": [],
}  # fmt: skip


@given(OUTER)
def test_a_value_reads_back_from_json(value: Outer) -> None:
    assert value_from_json(Outer, json.loads(json.dumps(value_to_json(value)))) == value


def test_a_whole_number_may_stand_for_a_float_and_defaults_may_be_left_out() -> None:
    values = {**GOOD, "share": 1, "inner": {"name": "x"}, "added_later": 3}
    del values["many"]
    found = value_from_json(Outer, values)
    assert (found.share, type(found.share), found.inner.mode, found.many) == (1.0, float, "fast", ())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"count": 1.0}, "count: expected a whole number, found '1.0'"),
        ({"count": True}, "count: expected a whole number, found 'True'"),
        ({"count": None}, "count: expected a whole number"),
        ({"count": -1}, "Outer: expected count >= 0"),
        ({"share": "0.5"}, "share: expected a number"),
        ({"share": True}, "share: expected a number"),
        ({"on": 1}, "on: expected true or false"),
        ({"maybe": "1"}, "maybe: expected a whole number"),
        ({"inner": []}, "inner: expected keys and values"),
        ({"inner": {}}, "inner.name: is missing"),
        (
            {"inner": {"name": "x", "mode": "medium"}},
            "inner.mode: expected one of fast, slow, found 'medium'",
        ),
        ({"inner": {"name": "x", "mode": ["fast"]}}, "inner.mode: expected one of fast, slow"),
        ({"many": {}}, "many: expected a list"),
        ({"many": [{"name": "x"}, {"name": 5}]}, "many[1].name: expected text, found '5'"),
    ],
)
def test_a_wrong_value_is_told_with_its_place(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught:
        value_from_json(Outer, {**GOOD, **changes})
    assert said in caught.value.message


@pytest.mark.parametrize("values", [None, [], "text", 5])
def test_what_is_no_object_is_refused(values: object) -> None:
    with pytest.raises(InputError, match="value: expected keys and values"):
        value_from_json(Outer, values)


@dataclass(frozen=True)
class _Pairs:
    pairs: tuple[tuple[int, float], ...]


def test_tuples_of_fixed_length() -> None:
    kept = _Pairs(((1, 2.0), (3, 4.5)))
    assert value_from_json(_Pairs, value_to_json(kept)) == kept
    with pytest.raises(InputError, match=r"pairs\[0\]: expected 2 values"):
        value_from_json(_Pairs, {"pairs": [[1, 2.0, 3.0]]})
    with pytest.raises(InputError, match=r"pairs\[0\]\[0\]: expected a whole number"):
        value_from_json(_Pairs, {"pairs": [[1.5, 2.0]]})
