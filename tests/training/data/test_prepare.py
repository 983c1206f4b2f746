"""Scaling, element types and the place of the channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from leptonai.core.errors import InputError
from leptonai.training.data.augment import AddChannel, Cast, ChannelsFirst, Scale

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
IMAGES = np.random.default_rng(0).integers(0, 256, (4, 6, 5, 3), dtype=np.uint8)


def expected(images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """In float64, channels last."""
    return (images / 255.0 - np.array(MEAN)) / np.array(STD)


def test_bytes_are_brought_to_unit_range_then_scaled_a_channel() -> None:
    scaled = Scale(MEAN, STD)((IMAGES,))[0]
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, expected(IMAGES), rtol=1e-5, atol=1e-6)


def test_all_memory_orders_give_the_same_numbers_bit_for_bit() -> None:
    last = Scale(MEAN, STD)((IMAGES,))[0]
    viewed = Scale(MEAN, STD, "channels_first")(ChannelsFirst()((IMAGES,)))[0]
    copied = Scale(MEAN, STD, "channels_first")((np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2)),))[0]
    assert np.array_equal(viewed, last.transpose(0, 3, 1, 2))
    assert np.array_equal(copied, last.transpose(0, 3, 1, 2))
    assert np.moveaxis(viewed, 1, -1).flags.c_contiguous


def test_floats_are_scaled_as_they_are() -> None:
    scaled = Scale(mean=2.0, std=4.0)((np.array([[2.0, 6.0]]), np.array([1])))
    assert scaled[0].tolist() == [[0.0, 1.0]]
    assert scaled[1].tolist() == [1]


def test_features_may_each_have_their_own_mean() -> None:
    assert Scale(mean=(1.0, 2.0), std=(1.0, 0.5))((np.array([[1.0, 3.0]]),))[0].tolist() == [[0.0, 2.0]]


@given(st.integers(0, 3))
def test_an_empty_or_small_share_keeps_its_shape(size: int) -> None:
    assert Scale(MEAN, STD)((IMAGES[:size],))[0].shape == IMAGES[:size].shape


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Scale(mean=(1.0, 2.0), std=(1.0, 2.0, 3.0)), "2 means do not go with 3 stds"),
        (lambda: Scale(std=0.0), "stds > 0"),
        (lambda: Scale(mean=float("nan")), "finite"),
        (lambda: Cast("float7"), "unknown element type"),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


@pytest.mark.parametrize(
    ("prepare", "shape", "message"),
    [
        (Scale(MEAN, STD), (2, 28, 28), "3 means or stds do not fit shape"),
        (Scale(MEAN, STD, "channels_first"), (2, 28, 28, 3), "do not fit shape"),
        (AddChannel(), (2, 28, 28, 1), "AddChannel"),
        (ChannelsFirst(), (2, 28, 28), "ChannelsFirst"),
        (Cast("int64", column=2), (2,), "no column 2"),
    ],
)
def test_batches_that_do_not_fit_are_refused(prepare: Any, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare((np.zeros(shape),))


def test_channels_move_without_copying() -> None:
    moved = ChannelsFirst()((IMAGES, np.arange(4)))
    assert moved[0].shape == (4, 3, 6, 5)
    assert np.shares_memory(moved[0], IMAGES)
    added = AddChannel("channels_first")((IMAGES[..., 0],))[0]
    assert added.shape == (4, 1, 6, 5)
    assert np.shares_memory(added, IMAGES)


def test_cast_changes_only_its_column() -> None:
    inputs, labels = Cast("int64")((IMAGES, np.arange(4, dtype=np.uint8)))
    assert (inputs.dtype, labels.dtype) == (np.uint8, np.int64)
