"""Arrays and Data: what they take, what they refuse, and how a data set is recognised."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.core.errors import InputError
from leptonai.training.data.augment import Draws, RandomFlip, Scale
from leptonai.training.data.dataset import ArrayColumn, Arrays, Data, label_range
from leptonai.training.data.files import ArrayFiles, open_array


def arrays(num_examples: int = 6) -> Arrays:
    return Arrays(np.arange(num_examples * 2).reshape(num_examples, 2), np.arange(num_examples) % 3)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ((), "at least one column"),
        ((np.zeros((0, 2)),), "has no examples"),
        ((np.zeros(2), np.zeros(3)), "differ in length: 2, 3"),
        ((np.float32(1),), "column 0 is a single number"),
        ((np.zeros(1), np.array([object()])), "column 1 holds Python objects"),
        (([1, 2],), "column 0 is a list"),
    ],
)
def test_unfit_columns_are_refused_with_the_reason(columns: tuple[object, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Arrays(*columns)


def test_taking_gives_the_examples_in_the_order_asked() -> None:
    inputs, labels = arrays().take(np.array([5, 0, 5]))
    assert inputs.tolist() == [[10, 11], [0, 1], [10, 11]]
    assert labels.tolist() == [2, 0, 2]


def test_first_keeps_the_beginning_of_every_kind_of_column(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(6))
    mixed = Arrays(np.arange(6), ArrayFiles([tmp_path / "a.npy"])).first(4)
    assert len(mixed) == 4
    in_memory, in_file = mixed.take(np.array([-1, 0]))
    assert in_memory.tolist() == in_file.tolist() == [3, 0]
    with pytest.raises(IndexError):
        mixed.columns[1].take(np.array([4]))


def test_batches_of_a_memory_map_are_plain_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.arange(6))
    column = Arrays(open_array(tmp_path / "a.npy")).first(3).columns[0]
    assert isinstance(column, ArrayColumn)
    assert isinstance(column.array, np.memmap)
    assert type(column.take(np.array([1]))) is np.ndarray


def test_first_of_more_than_there_are_is_all() -> None:
    assert len(arrays(3).first(10)) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"train": np.zeros(3)}, "train is a ndarray"),
        ({"train": arrays(), "evaluate": np.zeros(3)}, "evaluate is a ndarray"),
        ({"train": arrays(), "evaluate": Arrays(np.zeros(3))}, "2 columns but evaluate has 1"),
        ({"train": arrays(), "origin": Arrays(np.zeros(99))}, "origin has 99"),
        ({"train": arrays(), "prepare": Scale()}, "prepare must be a tuple"),
        ({"train": arrays(), "augment": (1,)}, "augment must be a tuple"),
    ],
)
def test_data_that_does_not_fit_together_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Data(**arguments)  # type: ignore[arg-type]


def test_training_batches_are_augmented_and_all_batches_prepared() -> None:
    images = np.arange(8, dtype=np.uint8).reshape(2, 2, 2)
    part = Arrays(images, np.arange(2))
    data = Data(part, part, prepare=(Scale(mean=0.0, std=1 / 255),), augment=(RandomFlip(probability=1.0),))
    draws = Draws(seed=0, epoch=0, step=0, num_examples=1, share=slice(0, 1))
    assert data.training_batch(np.array([1]), draws)[0].tolist() == [[[5, 4], [7, 6]]]
    assert data.evaluation_batch(np.array([1]))[0].tolist() == [[[4, 5], [6, 7]]]


def test_asking_for_evaluation_examples_that_are_not_there_is_an_input_error() -> None:
    with pytest.raises(InputError, match="no evaluation examples"):
        Data(arrays()).evaluation_batch(np.array([0]))


@given(st.integers(0, 29), st.integers(0, 1))
def test_fingerprint_of_small_data_changes_with_any_value(place: int, column: int) -> None:
    values = [np.arange(60).reshape(30, 2), np.arange(30)]
    before = Data(Arrays(*values)).fingerprint()
    values[column] = values[column].copy()
    values[column][place] += 1
    assert Data(Arrays(*values)).fingerprint() != before


def test_fingerprint_is_json_and_the_same_for_a_file_as_for_memory(tmp_path: Path) -> None:
    values = np.arange(3_000_000, dtype=np.float32).reshape(-1, 3)
    np.save(tmp_path / "a.npy", values)
    in_memory = Data(Arrays(values)).fingerprint()
    assert json.loads(json.dumps(in_memory)) == in_memory
    assert Data(Arrays(ArrayFiles([tmp_path / "a.npy"]))).fingerprint() == in_memory


def test_fingerprint_tells_preparations_apart_but_not_processes() -> None:
    def described(step: object) -> object:
        return Data(arrays(), prepare=(step,)).fingerprint()["prepare"]  # type: ignore[arg-type]

    assert described(Scale(mean=0.5)) != described(Scale(mean=0.6))
    assert "0x" not in str(described(lambda batch: batch))


@given(st.lists(st.integers(-(2**40), 2**40), min_size=1, max_size=50))
def test_label_range_is_that_of_the_last_column(labels: list[int]) -> None:
    assert label_range(Arrays(np.zeros(len(labels)), np.array(labels))) == (min(labels), max(labels))


def test_label_range_of_a_file_is_read_in_pieces(tmp_path: Path) -> None:
    labels = np.arange(5_000_000, dtype=np.int32)
    np.save(tmp_path / "labels.npy", labels[::-1])
    assert label_range(Arrays(ArrayFiles([tmp_path / "labels.npy"]))) == (0, 4_999_999)


def test_labels_that_are_not_whole_numbers_have_no_range() -> None:
    assert label_range(Arrays(np.zeros(3), np.zeros(3))) is None


def test_data_in_files_travels_to_another_process_as_names(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((100_000, 4)))
    data = Data(Arrays(ArrayFiles([tmp_path / "a.npy"])))
    sent = pickle.dumps(data)
    assert len(sent) < 2000
    assert pickle.loads(sent).fingerprint() == data.fingerprint()  # noqa: S301
