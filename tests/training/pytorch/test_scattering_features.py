"""Features of whole data sets: how they are normalised, folded, cached and shared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from leptonai.core.errors import Fault, InputError
from leptonai.training.data.dataset import Arrays, Data
from leptonai.training.data.datasets import Places
from leptonai.training.pytorch.dead_leaves import dead_leaves
from leptonai.training.pytorch.scattering_features import ScatteringFeatures, scattered

GREY = ScatteringFeatures(size=16)
COLOUR = ScatteringFeatures(size=16, colours=3, fold_mirrored=True)


def images(count: int, *, colour: bool) -> NDArray[np.uint8]:
    found = np.rint(dead_leaves(count, size=16, seed=5) * 255).astype(np.uint8)
    return found if colour else found[..., 0]


def data(*, first: int = 0) -> Data:
    def arrays(count: int) -> Arrays:
        pixels = images(count, colour=False)
        pixels[0, 0, 0] = first
        return Arrays(pixels, np.arange(count) % 3)

    return Data(train=arrays(9), evaluate=arrays(4))


def places(folder: Path) -> Places:
    return Places(data_dirs=(), cache=folder / "cache")


def test_every_example_has_mean_zero_and_one_length() -> None:
    features = GREY.of(images(5, colour=False))
    assert features.shape == (5, GREY.num_features) == (5, 81 * 16)
    assert features.dtype == np.float32
    np.testing.assert_allclose(features.mean(1), 0, atol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), np.sqrt(GREY.num_features), rtol=1e-3)


def test_each_group_has_mean_zero_and_spread_one() -> None:
    found = ScatteringFeatures(size=16, num_groups=27).of(images(5, colour=False)).reshape(5, 27, -1)
    np.testing.assert_allclose(found.mean(2), 0, atol=1e-4)
    # Groups with next to no detail keep less than that: the small constant in the root outweighs it.
    assert np.all(found.std(2) < 1.001)
    np.testing.assert_allclose(found[:, :6].std(2), 1, atol=0.05)


def test_one_example_never_depends_on_another() -> None:
    pixels = images(70, colour=True)
    alone = np.concatenate([COLOUR.of(pixels[place : place + 1]) for place in (0, 66)])
    np.testing.assert_allclose(COLOUR.of(pixels)[[0, 66]], alone, rtol=1e-3, atol=1e-3)


def test_folded_features_hardly_change_when_the_picture_is_mirrored() -> None:
    pixels = images(8, colour=True)
    here, there = COLOUR.of(pixels), COLOUR.of(pixels[:, :, ::-1])
    assert here.shape == (8, 3 * 81 * 16 // 2)
    assert np.linalg.norm(here - there) < 0.03 * np.linalg.norm(here)
    turned = COLOUR.of(np.ascontiguousarray(pixels.transpose(0, 2, 1, 3)))
    assert np.linalg.norm(here - turned) > 0.3 * np.linalg.norm(here)


def test_cached_features_are_those_computed(tmp_path: Path) -> None:
    found = scattered(data(), GREY, places=places(tmp_path))
    for arrays, source, count in ((found.train, data().train, 9), (found.evaluate, data().evaluate, 4)):
        assert arrays is not None
        assert source is not None
        features, labels = arrays.take(np.arange(count))
        np.testing.assert_array_equal(features, GREY.of(source.take(np.arange(count))[0]))
        np.testing.assert_array_equal(labels, np.arange(count) % 3)
    assert found.origin is not None  # a private run on the features spends the images' budget
    np.testing.assert_array_equal(found.origin.take(np.arange(9))[0], data().train.take(np.arange(9))[0])


def test_they_are_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scattered(data(), GREY, places=places(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(ScatteringFeatures, "of", None)
        scattered(data(), GREY, places=places(tmp_path))
        with pytest.raises(TypeError):
            scattered(data(first=200), GREY, places=places(tmp_path))
    # What a failed computation had begun is neither taken for features nor left behind.
    scattered(data(first=200), GREY, places=places(tmp_path))
    cache = tmp_path / "cache" / "scattering"
    assert len(list(cache.glob("*/features/evaluate.npy"))) == 2
    assert not list(cache.glob("*/.tmp-*"))


def test_a_cache_that_cannot_be_written_is_a_fault(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(Fault, match="could not write scattering features"):
        scattered(data(), GREY, places=places(tmp_path))


@pytest.mark.parametrize(
    "words",
    [{"colours": 2}, {"size": 30}, {"size": 28, "fold_mirrored": True}],
    ids=["colours", "size", "odd"],
)
def test_features_that_make_no_sense_are_refused(words: dict[str, Any]) -> None:
    with pytest.raises(InputError):
        ScatteringFeatures(**{"size": 32, **words})


@pytest.mark.parametrize("wrong", [np.zeros((2, 16, 16), np.float32), np.zeros((2, 16, 16, 3), np.uint8)])
def test_other_images_are_refused(wrong: NDArray[np.generic]) -> None:
    with pytest.raises(InputError, match="uint8"):
        GREY.of(wrong)


def test_dead_leaves_are_equal_for_equal_seeds_and_alike_at_all_scales() -> None:
    leaves = dead_leaves(64, size=32)
    assert leaves.shape == (64, 32, 32, 3)
    assert 0 <= leaves.min() < leaves.max() <= 1
    np.testing.assert_array_equal(leaves, dead_leaves(64, size=32))
    assert not np.array_equal(leaves, dead_leaves(64, size=32, seed=1))
    grey = torch.from_numpy(leaves).mean(3)
    power = torch.fft.fft2(grey - grey.mean((1, 2), keepdim=True)).abs().square().mean(0)
    frequencies = torch.fft.fftfreq(32) * 32
    radius = torch.sqrt(frequencies[:, None] ** 2 + frequencies**2)
    low, high = (power[(radius > each - 0.5) & (radius <= each + 0.5)].mean() for each in (2, 8))
    # Natural images: power falls as the square of the frequency, here by 16.
    assert 8 < float(low / high) < 32
