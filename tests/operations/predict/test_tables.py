"""Histories from files: any order, dates, several lives, and bad cells told with their place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from leptonai.core.errors import InputError
from leptonai.operations.predict.tables import Columns, current_lives, read_history


def written(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "history.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def test_rows_of_any_order_dates_and_several_lives(tmp_path: Path) -> None:
    path = written(
        tmp_path, "unit,time,heat,load,end", "b,2026-01-01T01:00:00Z,5,1,", "a,2026-01-01T02:00:00+01:00,3,1,Failed",
        "a,2026-01-01T00:00:00Z,2,2,", "a,2026-01-01T05:00:00Z,,1,0", "b,2026-01-01T00:00:00Z,4,1,",
    )  # fmt: skip
    found = read_history(path, Columns(settings=("load",)))
    units = {unit.name: unit for unit in found.history.units}
    assert found.dated
    assert list(units) == ["a", "a (life 2)", "b"]
    assert units["a"].failed
    assert units["a"].times_T[1] - units["a"].times_T[0] == 3600
    assert units["a"].settings_TC[:, 0].tolist() == [2.0, 1.0]
    assert np.isnan(units["a (life 2)"].signals_TS).all()
    assert [unit.name for unit in current_lives(found.history).units] == ["a (life 2)", "b"]


def test_parquet_says_the_same_as_csv(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    lines = ("unit,time,heat,end", "a,0,1.5,", "a,1,2.5,failed", "b,0,,")
    columns = {
        "unit": ["a", "a", "b"],
        "time": [0, 1, 0],
        "heat": [1.5, 2.5, None],
        "end": [None, "failed", None],
    }
    parquet.write_table(arrow.table(columns), tmp_path / "history.parquet")
    one, other = read_history(written(tmp_path, *lines)), read_history(tmp_path / "history.parquet")
    for left, right in zip(one.history.units, other.history.units, strict=True):
        assert (left.name, left.failed) == (right.name, right.failed)
        np.testing.assert_array_equal(left.signals_TS, right.signals_TS)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (("unit,time,heat", "a,0,warm"), "line 2, column 'heat': expected a number, found 'warm'"),
        (("unit,time,heat", "a,0,1", "a,soon,1"), "line 3, column 'time': expected a number"),
        (("unit,time,heat", "a,2026-01-01,1", "a,7 o'clock,1"), "expected a date and time as in the rows before"),
        (("unit,time,heat,end", "a,0,1,maybe"), "line 2, column 'end': 'maybe' is no end"),
        (("unit,time,heat", ",0,1"), "expected the name of a unit"),
        (("unit,time,heat", "a,0"), "line 2: expected 3 columns, found 2"),
        (("unit,time,time", "a,0,1"), "two columns are called 'time'"),
        (("units,time,heat", "a,0,1"), "no column 'unit' for the units"),
        (("unit,time,heat", "a,0,1", "a,0,2"), "times must be finite and increase"),
        (("unit,time", "a,0"), "has no signal"),
        (("unit,time,heat",), "no row below the heading"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, lines: tuple[str, ...], said: str) -> None:
    with pytest.raises(InputError, match=said.replace("(", r"\(")):
        read_history(written(tmp_path, *lines))


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_history(tmp_path / "none.csv")
    (tmp_path / "bad.csv").write_bytes(b"unit,time,\xff\xfe\n")
    with pytest.raises(InputError, match="no CSV file in UTF-8"):
        read_history(tmp_path / "bad.csv")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 not at all")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        read_history(tmp_path / "bad.parquet")
