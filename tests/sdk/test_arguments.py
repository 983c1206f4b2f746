"""Data given to ``fit``: accepted as Keras would, or refused with a reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leptonai.core.errors import InputError
from leptonai.sdk.arguments import check_steps, examples_from, split, weighted, with_class_weight
from leptonai.sdk.sources import FileArray, put


def test_lists_and_tensors_become_arrays() -> None:
    found = examples_from([[1.0, 2.0], [3.0, 4.0]], torch.tensor([0, 1]), where="fit")
    assert found.inputs[0].shape == (2, 2)
    assert found.labels.tolist() == [0, 1]


def test_a_list_of_arrays_is_one_column_for_each_input() -> None:
    first, second = np.zeros((3, 2)), np.ones((3, 4))
    names = ["a", "b"]
    as_list = examples_from([first, second], [0, 1, 0], where="fit", input_names=names)
    as_mapping = examples_from({"b": second, "a": first}, [0, 1, 0], where="fit", input_names=names)
    for found in (as_list, as_mapping):
        assert [column.shape for column in found.inputs] == [(3, 2), (3, 4)]


@pytest.mark.parametrize(
    ("x", "y", "weight", "message"),
    [
        (np.zeros((3, 1)), None, None, "expected both x and y"),
        (np.zeros((3, 1)), [0, 1], None, "differ in length: 2, 3"),
        (np.zeros((0, 1)), [], None, "no examples"),
        (np.zeros((2, 1)), [0, 1], [1.0], "sample_weight of shape"),
        ([["a"], ["b"]], [0, 1], None, "expected numbers"),
        (iter([1]), [0], None, "expected numbers"),
        ({"wrong": np.zeros((2, 1))}, [0, 1], None, "the model's inputs are image"),
    ],
)
def test_wrong_data_is_refused(x: Any, y: Any, weight: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        examples_from(x, y, weight, where="fit", input_names=["image"])


@given(num_examples=st.integers(2, 200), share=st.floats(0.01, 0.99))
def test_a_split_loses_no_example_and_takes_the_last_ones_for_validation(
    num_examples: int, share: float
) -> None:
    examples = examples_from(np.arange(num_examples), np.arange(num_examples), where="fit")
    if int(num_examples * (1 - share)) == 0:
        return
    first, last = split(examples, share)
    assert first.labels.tolist() + last.labels.tolist() == list(range(num_examples))
    assert len(first) == int(num_examples * (1.0 - share))


def test_class_weights_multiply_sample_weights_also_for_one_hot_labels() -> None:
    plain = examples_from(np.zeros(3), [0, 1, 1], [1.0, 2.0, 3.0], where="fit")
    one_hot = examples_from(np.zeros(3), np.eye(2)[[0, 1, 1]], [1.0, 2.0, 3.0], where="fit")
    for examples in (plain, one_hot):
        found = with_class_weight(examples, {1: 10.0}).weights
        assert found is not None
        assert found.tolist() == [1.0, 20.0, 30.0]
    assert plain.weights is not None
    assert plain.weights.tolist() == [1.0, 2.0, 3.0]


def test_missing_weights_count_one() -> None:
    found = weighted(examples_from(np.zeros(2), [0, 1], where="fit")).weights
    assert found is not None
    assert found.tolist() == [1.0, 1.0]


def test_steps_per_epoch_must_be_a_whole_pass() -> None:
    check_steps(None, 10, 4)
    check_steps(3, 10, 4)
    with pytest.raises(InputError, match="make 3 steps"):
        check_steps(2, 10, 4)


def test_a_whole_memory_map_goes_by_its_file_and_a_part_of_one_by_value(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(12, dtype=np.float32).reshape(6, 2))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    shared: dict[str, Any] = {}
    source = put(examples_from(mapped, np.arange(6), where="fit"), "train", shared)
    assert isinstance(source.columns[0], FileArray)
    assert list(shared) == ["train_1"]
    np.testing.assert_array_equal(source.open(shared).take(np.arange(6))[0], mapped)
    part = put(examples_from(mapped[2:], np.arange(4), where="fit"), "part", shared)
    np.testing.assert_array_equal(part.open(shared).take(np.arange(4))[0], mapped[2:])
