"""Augmentation: windows, flips and squares of the originals, alike for any number of workers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.training.data.augment import Cutout, Draws, Layout, RandomCrop, RandomFlip, RandomShift
from leptonai.training.data.dataset import Augment
from leptonai.training.learner import shares

LAYOUTS: tuple[Layout, ...] = ("channels_last", "channels_first")
layouts = st.sampled_from(LAYOUTS)


@st.composite
def image_batches(draw: st.DrawFn) -> NDArray[Any]:
    shape = tuple(draw(st.lists(st.integers(4, 9), min_size=2, max_size=2)))
    channels = draw(st.sampled_from([(), (1,), (3,)]))
    batch = draw(st.integers(0, 6))
    dtype = draw(st.sampled_from([np.uint8, np.int16, np.float32, np.float64]))
    where = draw(st.booleans())
    full = (batch, *shape, *channels) if where else (batch, *channels, *shape)
    return draw(npst.arrays(dtype, full, elements=st.integers(0, 100)))


def layout_of(images: NDArray[Any]) -> Layout:
    return "channels_last" if images.ndim == 4 and images.shape[-1] in (1, 3) else "channels_first"


def whole(num_examples: int, step: int = 0) -> Draws:
    return Draws(seed=5, epoch=1, step=step, num_examples=num_examples, share=slice(0, num_examples))


def planes(images: NDArray[Any], layout: Layout) -> NDArray[Any]:
    """As (B, H, W, ...) whatever the layout."""
    return np.moveaxis(images, 1, -1) if images.ndim == 4 and layout == "channels_first" else images


def augmentations(layout: Layout) -> list[Augment]:
    return [
        RandomCrop(padding=2, layout=layout),
        RandomCrop(padding=3, mode="constant", layout=layout),
        RandomShift(pixels=2, layout=layout),
        RandomFlip(layout=layout),
        Cutout(size=3, layout=layout),
    ]


@given(image_batches(), st.integers(0, 4))
def test_every_example_is_augmented_alike_for_one_two_and_three_workers(
    images: NDArray[Any], which: int
) -> None:
    augment = augmentations(layout_of(images))[which]
    labels = np.arange(len(images))

    def augmented(num_workers: int) -> list[NDArray[Any]]:
        parts = []
        for share in shares(len(images), num_workers):
            draws = Draws(seed=5, epoch=1, step=8, num_examples=len(images), share=share)
            once = augment((images[share], labels[share]), draws)
            # A second call must draw anew, yet alike on all workers.
            parts.append(augment(once, draws))
        assert np.array_equal(np.concatenate([part[1] for part in parts]), labels)
        return np.concatenate([part[0] for part in parts])  # type: ignore[return-value]

    alone = augmented(1)
    assert np.array_equal(alone, augmented(2))
    assert np.array_equal(alone, augmented(3))


@given(image_batches(), st.integers(0, 4))
def test_shape_and_type_stay_and_the_originals_are_untouched(images: NDArray[Any], which: int) -> None:
    before = images.copy()
    changed = augmentations(layout_of(images))[which]((images, images), whole(len(images)))
    assert (changed[0].shape, changed[0].dtype) == (images.shape, images.dtype)
    assert np.array_equal(images, before)


@given(image_batches(), st.integers(0, 3), st.sampled_from(["reflect", "constant"]))
def test_a_crop_is_the_window_of_the_padded_original_that_was_drawn(
    images: NDArray[Any], padding: int, mode: Any
) -> None:
    layout = layout_of(images)
    cropped = RandomCrop(padding=padding, mode=mode, layout=layout)((images,), whole(len(images)))[0]
    again = whole(len(images))
    tops, lefts = again.integers(0, 2 * padding + 1), again.integers(0, 2 * padding + 1)
    for image, found, top, left in zip(
        planes(images, layout), planes(cropped, layout), tops, lefts, strict=True
    ):
        margins = [(padding, padding)] * 2 + [(0, 0)] * (image.ndim - 2)
        padded = np.pad(image, margins, mode=mode)
        height, width = image.shape[:2]
        assert np.array_equal(found, padded[top : top + height, left : left + width])


def test_crops_reach_every_offset() -> None:
    images = np.broadcast_to(np.arange(64).reshape(1, 8, 8), (500, 8, 8))
    cropped = RandomCrop(padding=1, mode="constant")((images,), whole(500))[0]
    assert len({image.tobytes() for image in cropped}) == 9


@given(image_batches())
def test_a_flip_mirrors_left_to_right_those_that_were_drawn(images: NDArray[Any]) -> None:
    layout = layout_of(images)
    flipped = planes(RandomFlip(layout=layout)((images,), whole(len(images)))[0], layout)
    flags = whole(len(images)).flags(0.5)
    original = planes(images, layout)
    assert np.array_equal(flipped[flags], original[flags][:, :, ::-1])
    assert np.array_equal(flipped[~flags], original[~flags])


@given(st.integers(1, 12), st.integers(1, 9), st.integers(1, 9), layouts)
def test_cutout_fills_one_rectangle_no_larger_than_asked(
    size: int, height: int, width: int, layout: Layout
) -> None:
    shape = (5, 2, height, width) if layout == "channels_first" else (5, height, width, 2)
    cut = Cutout(size=size, fill=9.0, layout=layout)((np.ones(shape, np.uint8),), whole(5))[0]
    for image in planes(cut, layout):
        assert np.array_equal(image[..., 0], image[..., 1])
        rows, cols = np.nonzero(image[..., 0] == 9)
        tall, wide = np.ptp(rows) + 1, np.ptp(cols) + 1
        assert 1 <= tall <= min(size, height)
        assert 1 <= wide <= min(size, width)
        assert len(rows) == tall * wide


def test_a_shift_brings_in_zeros() -> None:
    shifted = RandomShift(pixels=2)((np.ones((200, 6, 6), np.float32),), whole(200))[0]
    assert set(np.unique(shifted)) == {0.0, 1.0}
    assert {int(image.sum()) for image in shifted} == {a * b for a in (4, 5, 6) for b in (4, 5, 6)}


@pytest.mark.parametrize(
    ("augment", "shape", "message"),
    [
        (RandomCrop(padding=4), (1, 4, 9), "mirrors more pixels"),
        (RandomCrop(), (2, 9), "3 or 4 axes"),
        (RandomFlip(layout="sideways"), (1, 4, 4), "unknown layout"),  # type: ignore[arg-type]
    ],
)
def test_images_that_do_not_fit_are_refused(augment: Augment, shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        augment((np.zeros(shape),), whole(shape[0]))


def test_settings_out_of_range_are_refused() -> None:
    for make in (
        lambda: RandomCrop(padding=-1),
        lambda: RandomCrop(mode="wrap"),  # type: ignore[arg-type]
        lambda: RandomShift(pixels=-1),
        lambda: RandomFlip(probability=1.5),
        lambda: Cutout(size=0),
    ):
        with pytest.raises(InputError):
            make()


def test_draws_fill_their_range_evenly_and_differ_by_position() -> None:
    draws = whole(20_000)
    counts = np.bincount(draws.integers(-2, 3) + 2)
    # Binomial with mean 4,000 and deviation 56.6.
    assert len(counts) == 5
    assert np.abs(counts - 4000).max() < 5 * 56.6
    uniform = draws.uniform(2.0, 4.0)
    assert 2.0 <= uniform.min() < 2.01
    assert 3.99 < uniform.max() < 4.0
    assert abs(draws.flags(0.25).mean() - 0.25) < 5 * (0.25 * 0.75 / 20_000) ** 0.5
    first = {
        Draws(seed=seed, epoch=epoch, step=step, num_examples=1, share=slice(0, 1)).uniform()[0]
        for seed in range(3)
        for epoch in range(3)
        for step in range(3)
    }
    assert len(first) == 27


def test_draws_are_the_same_in_every_release() -> None:
    # A change here breaks bit-exact resume of every run there is.
    assert whole(4).integers(0, 1000).tolist() == [3, 327, 804, 353]
