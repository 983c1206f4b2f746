"""Columns in .npy files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.core.errors import InputError
from leptonai.training.data.files import ArrayFiles, open_array


@given(st.lists(st.integers(0, 4), min_size=1, max_size=4), st.data())
def test_several_files_are_one_array(
    tmp_path_factory: pytest.TempPathFactory, sizes: list[int], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("files")
    whole = np.arange(sum(sizes) * 2).reshape(-1, 2)
    stops = np.cumsum(sizes)
    paths = [folder / f"{place}.npy" for place in range(len(sizes))]
    for path, part in zip(paths, np.split(whole, stops[:-1]), strict=True):
        np.save(path, part)
    column = ArrayFiles(paths)
    length = len(whole)
    some = st.lists(st.integers(-length, length - 1), max_size=8) if length else st.just([])
    indices = np.array(data.draw(some), np.int64)
    assert (len(column), column.shape, column.dtype) == (length, (2,), whole.dtype)
    assert np.array_equal(column.take(indices), whole[indices])


@pytest.mark.parametrize("num_files", [1, 2])
@pytest.mark.parametrize("index", [4, -5])
def test_an_index_outside_is_an_index_error(tmp_path: Path, num_files: int, index: int) -> None:
    paths = [tmp_path / f"{place}.npy" for place in range(num_files)]
    for path in paths:
        np.save(path, np.arange(4 // num_files))
    with pytest.raises(IndexError):
        ArrayFiles(paths).take(np.array([0, index]))


def test_only_what_is_taken_is_read_into_memory(tmp_path: Path) -> None:
    # A sparse file far larger than any memory: reading it whole could not succeed.
    header = np.lib.format.open_memmap(tmp_path / "big.npy", "w+", np.uint8, (1 << 32, 1 << 10))
    header[1 << 31, 5] = 7
    del header
    column = ArrayFiles([tmp_path / "big.npy", tmp_path / "big.npy"])
    assert len(column) == 1 << 33
    assert column.take(np.array([1 << 31, 3 << 31, 0]))[:, 5].tolist() == [7, 7, 0]


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.npy: there is no such file"):
        ArrayFiles([tmp_path / "gone.npy"])


def test_files_that_differ_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((2, 3)))
    for other in (np.zeros((2, 4)), np.zeros((2, 3), np.float32)):
        np.save(tmp_path / "b.npy", other)
        with pytest.raises(InputError, match=r"b\.npy: holds .* which does not continue"):
            ArrayFiles([tmp_path / "a.npy", tmp_path / "b.npy"])


def test_objects_archives_and_garbage_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{}]), allow_pickle=True)
    np.savez(tmp_path / "archive.npz", a=np.zeros(3))
    (tmp_path / "garbage.npy").write_bytes(b"not an array")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.save(tmp_path / "short.npy", np.zeros(100))
    with open(tmp_path / "short.npy", "r+b") as file:
        file.truncate(300)
    for name in ("objects.npy", "archive.npz", "garbage.npy", "empty.npy", "short.npy"):
        with pytest.raises(InputError, match=name):
            open_array(tmp_path / name)


def test_a_mapped_array_cannot_be_written(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(ValueError, match="read-only"):
        open_array(tmp_path / "a.npy")[0] = 1
