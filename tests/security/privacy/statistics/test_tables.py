"""Files that are read, and files that are refused without showing what they hold."""

from __future__ import annotations

import importlib
import math
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from leptonai.core.errors import InputError
from leptonai.security.privacy.statistics.grid import Grid, default_step
from leptonai.security.privacy.statistics.table import Wanted, read_table

WANTED = Wanted(texts=frozenset({"user", "city"}), numbers=frozenset({"age"}))
GOOD = b"user,city,age\nann,Oslo,31\nbob,,\nann,Bonn,1e3\n"


def write(folder: Path, data: bytes, name: str = "people.csv") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


def test_a_table_is_read(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, GOOD), WANTED)
    assert table.num_rows == 3
    assert table.texts["user"].names == ("ann", "bob")
    assert table.texts["user"].codes_N.tolist() == [0, 1, 0]
    assert table.texts["city"].codes_N.tolist() == [0, -1, 1]
    assert table.numbers["age"].tolist()[::2] == [31.0, 1000.0]
    assert math.isnan(table.numbers["age"][1])


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", ":1: the heading is missing"),
        (b"\n", ":1: the heading is missing"),
        (b"user,city\nann,Oslo\n", "there is no column 'age'"),
        (b"user,city,age,age\nann,Oslo,1,2\n", "two columns are called 'age'"),
        (b"user,city,age\nann,Oslo,31\nann,Oslo\n", ":3: the row does not have 3 fields"),
        (b"user,city,age\nann,Oslo,31,SECRET\n", ":2: the row does not have 3 fields"),
        (b"user,city,age\nann,Oslo,31\n\nann,Oslo,1\n", ":3: the row does not have 3 fields"),
        (b"user,city,age\nann,Oslo,SECRET\n", ":2: column 'age' is not a number"),
        (b"user,city,age\nann,Oslo,1_0\n", ":2: column 'age' is not a number"),
        (b"user,city,age\nann,Oslo,0x1F\n", ":2: column 'age' is not a number"),
        (b'user,city,age\n"ann"SECRET,Oslo,3\n', ":2: the row cannot be read"),
        (b'user,city,age\nann,"SECRET,3\n', "the row cannot be read"),
        (b"user,city,age\nann,SECRET\xff,3\n", ":2: is not UTF-8 text"),
        (b"user,city,age\nann,Oslo," + b"9" * 200_000 + b"\n", ":2: the row cannot be read"),
    ],
)
def test_a_malformed_file_names_its_line_and_never_a_value(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(InputError) as caught:
        read_table(write(tmp_path, data), WANTED)
    assert message in str(caught.value)
    assert "SECRET" not in str(caught.value)
    assert "999" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_a_wrong_name_is_met_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean 'age'"):
        read_table(write(tmp_path, GOOD), Wanted(texts=frozenset(), numbers=frozenset({"aeg"})))
    with pytest.raises(InputError, match="no such file"):
        read_table(tmp_path / "absent.csv", WANTED)
    with pytest.raises(InputError, match="cannot be read"):
        read_table(tmp_path, WANTED)


def test_a_heading_alone_is_an_empty_table(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, b"user,city,age\n"), WANTED)
    assert table.num_rows == 0
    assert len(table.numbers["age"]) == 0


def test_huge_and_infinite_numbers_are_cut_to_the_bounds(tmp_path: Path) -> None:
    ages = [b"9" * 500, b"-" + b"9" * 500, b"inf", b"-inf", b"1e-400", b"nan", b" 7 "]
    table = read_table(
        write(tmp_path, b"user,city,age\n" + b"".join(b"a,b," + age + b"\n" for age in ages)), WANTED
    )
    grid = Grid(low=Fraction(-5), high=Fraction(5), step=Fraction(1))
    numbers = table.numbers["age"]
    assert grid.steps(numbers[~np.isnan(numbers)]).tolist() == [5, -5, 5, -5, 0, 5]


@pytest.mark.parametrize(
    "data",
    [
        b"user,city,age\nann,Bonn,1e3\nann,Oslo,31\nbob,,\n",
        b"city,age,user\r\nOslo,31,ann\r\n,,bob\r\nBonn,1e3,ann\r\n",
        b'\xef\xbb\xbf"user","city","age"\n"ann","Oslo","31"\n"bob","",""\n"ann","Bonn","1e3"',
    ],
    ids=["rows", "columns", "quotes"],
)
def test_the_same_rows_written_otherwise_have_the_same_digest(tmp_path: Path, data: bytes) -> None:
    one = read_table(write(tmp_path, GOOD), WANTED)
    assert read_table(write(tmp_path, data, "renamed.csv"), WANTED).digest == one.digest


@pytest.mark.parametrize(
    "data",
    [
        GOOD.replace(b"31", b"32"), GOOD + b"ann,Oslo,31\n", GOOD.replace(b"city", b"town"),
        GOOD.replace(b"ann,Oslo", b"annO,slo"), b"user,city,age\n",
    ],
)  # fmt: skip
def test_other_rows_have_another_digest(tmp_path: Path, data: bytes) -> None:
    nothing = Wanted(texts=frozenset(), numbers=frozenset())
    one = read_table(write(tmp_path, GOOD), nothing)
    assert read_table(write(tmp_path, data, "other.csv"), nothing).digest != one.digest


def test_parquet_gives_what_csv_gives(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "people.parquet"
    table = arrow.table(
        {
            "user": arrow.array(["ann", "bob", "ann"]).dictionary_encode(),
            "city": ["Oslo", None, "Bonn"],
            "age": arrow.array([31, None, 1000], type=arrow.int16()),
        }
    )
    parquet.write_table(table, path, row_group_size=2)
    one, two = read_table(path, WANTED), read_table(write(tmp_path, GOOD.replace(b"1e3", b"1000")), WANTED)
    assert one.texts["user"].names == two.texts["user"].names
    assert one.texts["city"].codes_N.tolist() == two.texts["city"].codes_N.tolist()
    np.testing.assert_array_equal(one.numbers["age"], two.numbers["age"])
    assert one.digest == two.digest


def test_parquet_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "people.parquet"
    path.write_bytes(b"PAR1 SECRET PAR1")
    with pytest.raises(InputError, match="cannot be read as Parquet") as caught:
        read_table(path, WANTED)
    assert "SECRET" not in str(caught.value)
    parquet.write_table(arrow.table({"user": ["a"], "city": [1.5], "age": ["SECRET"]}), path)
    with pytest.raises(InputError, match="column 'age' holds string, expected numbers") as caught:
        read_table(path, WANTED)
    assert "SECRET" not in str(caught.value)
    with pytest.raises(InputError, match="no such file"):
        read_table(tmp_path / "absent.parquet", WANTED)


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = importlib.import_module

    def missing(name: str, *rest: Any) -> Any:
        if name.startswith("pyarrow"):
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(InputError, match=r"openlepton\[parquet\]"):
        read_table(tmp_path / "people.parquet", WANTED)


@pytest.mark.parametrize(
    ("low", "high", "step", "message"),
    [
        (5, 5, 1, "low < high"),
        (9, 1, 1, "low < high"),
        (0, 1, 2, "step"),
        (0, 1, 0, "step"),
        (0, 2**40, 1, "too small"),
    ],
)
def test_bounds_that_do_not_fit_are_refused(low: int, high: int, step: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Grid(low=Fraction(low), high=Fraction(high), step=Fraction(step))


def test_the_default_step_fits_any_bounds() -> None:
    for low, high in ((0, 1), (-3, 10**6), (0, Fraction(1, 10**9)), (17, 90)):
        step = default_step(Fraction(low), Fraction(high))
        assert 10_000 <= (high - low) / step <= 100_000
