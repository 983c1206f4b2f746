"""Tables as values, ids, and what rows begin with."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.core.errors import InputError
from leptonai.training.parameter_server.tables.initial import initial_rows
from leptonai.training.parameter_server.tables.spec import (
    RowAdagrad,
    RowAdam,
    RowSGD,
    Table,
    as_ids,
    digest_word,
    table_from_json,
    table_to_json,
)


def table(**changes: object) -> Table:
    values: dict[str, object] = {"name": "t", "width": 3, "num_rows": 9, "rule": RowSGD(lr=1.0)}
    return Table(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0}, "table 't': expected width"),
        ({"width": 2.0}, "expected width"),
        ({"num_rows": 0}, "expected num_rows"),
        ({"capacity": 5}, "exactly one"),
        ({"num_rows": None}, "exactly one"),
        ({"name": "a/b"}, "unusable name"),
        ({"evict": "least_recent"}, "evict"),
        ({"init": "cauchy"}, "init"),
        ({"init_scale": -1.0}, "init_scale"),
        ({"rule": "adam"}, "unknown rule"),
        ({"batch_rows": 0}, "batch_rows"),
        ({"num_rows": None, "capacity": 1000, "memory_cap_bytes": 1000}, "1,000 rows take"),
    ],
)
def test_a_bad_table_is_an_input_error(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        table(**changes)


@pytest.mark.parametrize("rule", [{"lr": 0.0}, {"lr": float("nan")}, {"lr": float("inf")}])
def test_a_bad_rate_is_an_input_error(rule: dict[str, float]) -> None:
    for kind in (RowSGD, RowAdagrad, RowAdam):
        with pytest.raises(InputError, match="lr"):
            kind(**rule)
    with pytest.raises(InputError, match="betas"):
        RowAdam(lr=1.0, betas=(1.0, 0.9))
    with pytest.raises(InputError, match="initial"):
        RowAdagrad(lr=1.0, initial=-1.0)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([1.5], "table 't': an id must be a whole number, found .*1.5"),
        ([True], "whole number"),
        (["a"], "whole number"),
        ([3, -1], "id -1 lies outside 0 to 8"),
        ([9], "id 9 lies outside 0 to 8"),
        (np.array([2**63], np.uint64), "lies outside"),
    ],
)
def test_a_bad_id_names_table_and_id(ids: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_ids(table(), ids)


def test_ids_of_any_whole_type_are_taken() -> None:
    for kind in (np.uint8, np.int32, np.uint64, np.int64):
        found = as_ids(table(), np.array([[1, 8]], kind))
        assert found.dtype == np.int64
        assert found.tolist() == [[1, 8]]
    assert as_ids(table(), []).shape == (0,)
    assert as_ids(table(num_rows=None, capacity=1), [2**63 - 1]).tolist() == [2**63 - 1]


def test_a_table_survives_json() -> None:
    for rule in (RowSGD(lr=0.5), RowAdagrad(lr=0.1, initial=0.1), RowAdam(lr=0.1, betas=(0.8, 0.9))):
        before = table(rule=rule, num_rows=None, capacity=7, evict="least_recent")
        after = table_from_json(json.loads(json.dumps(table_to_json(before))))
        assert after == before
        assert digest_word(after) == digest_word(before) != digest_word(table())
    with pytest.raises(InputError, match="no table"):
        table_from_json({"rule": {"kind": "lion"}})


@given(st.lists(st.integers(0, 2**63 - 1), min_size=1, max_size=20))
def test_new_rows_depend_on_seed_table_and_id_alone(ids: list[int]) -> None:
    for init in ("uniform", "normal"):
        spec = table(num_rows=None, capacity=1, init=init, init_scale=0.5)
        together, alone = np.empty((2, len(ids), 3), np.float32)
        initial_rows(spec, np.array(ids), together)
        for place, one in enumerate(ids):
            initial_rows(spec, np.array([one]), alone[place : place + 1])
        np.testing.assert_array_equal(together, alone)


def test_new_rows_have_the_distribution_asked_for() -> None:
    for init, deviation in (("uniform", 0.5 / 3**0.5), ("normal", 0.5)):
        out = np.empty((20_000, 8), np.float32)
        initial_rows(table(width=8, num_rows=20_000, init=init, init_scale=0.5), np.arange(20_000), out)
        assert abs(out.mean()) < 0.01
        assert abs(out.std() - deviation) < 0.01
        assert abs(np.corrcoef(out[:, 0], out[:, 1])[0, 1]) < 0.03
        assert len(np.unique(out[:, 0])) > 19_900
    other = np.empty_like(out)
    initial_rows(table(width=8, num_rows=20_000, seed=1, init_scale=0.5), np.arange(20_000), other)
    assert not np.array_equal(out, other)
