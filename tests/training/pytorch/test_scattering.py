"""The scattering transform against a slow one in space, and the properties that make it useful."""

from __future__ import annotations

import math

import pytest
import torch

from leptonai.core.errors import InputError
from leptonai.training.pytorch.scattering import Scattering, morlet

SIZE = 16


@pytest.fixture(scope="module")
def scattering() -> Scattering:
    return Scattering(SIZE)


def smooth_images(count: int, *, size: int = SIZE, seed: int = 0) -> torch.Tensor:
    """Noise without its finest details."""
    noise = torch.rand(count, 1, size + 2, size + 2, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.avg_pool2d(noise, 3, 1)[:, 0]


def convolved(values: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """Circular convolution, value by value, in float64; the kernel is centred on (0, 0)."""
    found = torch.zeros_like(values, dtype=kernel.dtype)
    for down in range(values.shape[0]):
        for right in range(values.shape[1]):
            found += values[down, right] * kernel.roll((down, right), (0, 1))
    return found


def averaged(values: torch.Tensor, *, step: int) -> torch.Tensor:
    """The Gaussian mean of deviation 1.6 around the centres of cells of four pixels, of values ``step`` apart."""
    side = len(values) * step
    found = torch.zeros(SIZE // 4, SIZE // 4, dtype=torch.float64)
    for row in range(SIZE // 4):
        for column in range(SIZE // 4):
            for down in range(len(values)):
                for right in range(len(values)):
                    away = [
                        (4 * (cell + 1) + 1.5 - step * place + side / 2) % side - side / 2
                        for cell, place in ((row, down), (column, right))
                    ]
                    weight = math.exp(-(away[0] ** 2 + away[1] ** 2) / (2 * 1.6**2))
                    found[row, column] += weight * values[down, right] * step**2
    return found / (2 * math.pi * 1.6**2)


def test_maps_equal_convolutions_in_space(scattering: Scattering) -> None:
    image = smooth_images(1)
    maps = scattering(image)[0].to(torch.float64)
    bordered = torch.nn.functional.pad(image[None].to(torch.float64), (4,) * 4, mode="reflect")[0, 0]

    def wave(scale: int, direction: int) -> torch.Tensor:
        return morlet(SIZE + 8, scale=scale, direction=direction, num_directions=8)

    fine, coarse = (convolved(bordered, wave(scale, 3)).abs() for scale in (0, 1))
    both = convolved(fine, wave(1, 5)).abs()
    expected = [averaged(bordered, step=1), averaged(fine, step=1)]
    expected += [averaged(coarse[::2, ::2], step=2), averaged(both[::2, ::2], step=2)]
    places = [0, 1 + 3, 9 + 3, 17 + 3 * 8 + 5]
    for place, values in zip(places, expected, strict=True):
        torch.testing.assert_close(maps[place], values, rtol=1e-4, atol=1e-6)


def test_wavelets_are_the_published_ones() -> None:
    """Mean zero, largest at the published frequency, along the direction named."""
    for scale in range(2):
        for direction in range(8):
            wave = morlet(40, scale=scale, direction=direction, num_directions=8)
            spectrum = torch.fft.fft2(wave)
            assert abs(wave.sum()) < 1e-12
            assert spectrum.imag.abs().max() < 1e-12
            peak = int(spectrum.real.argmax())
            frequencies = torch.fft.fftfreq(40, dtype=torch.float64) * 2 * math.pi
            down, right = float(frequencies[peak // 40]), float(frequencies[peak % 40])
            angle = (3 - direction) * math.pi / 8
            expected = 0.75 * math.pi / 2**scale
            assert math.hypot(down, right) == pytest.approx(expected, abs=0.25)
            off = expected * torch.tensor([math.cos(angle), math.sin(angle)]) - torch.tensor([down, right])
            assert float(off.norm()) < 0.3


def test_a_flat_image_has_nothing_but_its_brightness(scattering: Scattering) -> None:
    maps = scattering(torch.full((1, SIZE, SIZE), 0.5))[0]
    assert torch.allclose(maps[0], torch.full_like(maps[0], 0.5), atol=1e-5)
    assert float(maps[1:].abs().max()) < 1e-5


def test_length_is_linear_in_contrast_and_never_grows_much(scattering: Scattering) -> None:
    images = smooth_images(4)
    maps = scattering(images)
    torch.testing.assert_close(scattering(3 * images), 3 * maps, rtol=1e-4, atol=1e-5)
    # One value stands for 16 pixels. Filters whose squares sum to at most one would not let energy grow at all.
    assert float(16 * maps.square().sum()) <= 1.1 * float(images.square().sum())
    assert float(maps.square().sum()) > 0


def test_a_shift_of_one_pixel_changes_little(scattering: Scattering) -> None:
    wide = smooth_images(8, size=SIZE + 1)
    here, there = wide[..., :-1, :-1], wide[..., 1:, 1:]
    features = [scattering(images) - scattering(images).mean(0) for images in (here, there)]
    pixels = [images - images.mean(0) for images in (here, there)]

    def moved(pair: list[torch.Tensor]) -> float:
        return float((pair[0] - pair[1]).norm() / pair[0].norm())

    assert moved(features) < 0.65 * moved(pixels)


def test_a_mirrored_image_has_mirrored_maps(scattering: Scattering) -> None:
    images = smooth_images(4)
    maps, found = scattering(images), scattering(images.flip(2))

    def off(expected: torch.Tensor) -> float:
        return float((found - expected)[:, 1:].norm() / found[:, 1:].norm())

    torch.testing.assert_close(found[:, 0], maps[:, 0].flip(2))
    # Coarse maps are thinned to every second value, whose places are not quite the mirrored ones.
    assert off(maps[:, scattering.mirrored_maps()].flip(3)) < 0.02
    assert off(maps.flip(3)) > 0.2


def test_equal_images_give_equal_maps_in_any_batch(scattering: Scattering) -> None:
    images = smooth_images(60)
    torch.testing.assert_close(scattering(images)[50:53], scattering(images[50:53]), rtol=1e-4, atol=1e-6)
    assert torch.equal(scattering(images), scattering(images))


@pytest.mark.parametrize(("size", "scales", "maps"), [(28, 2, 81), (32, 2, 81), (32, 3, 217), (16, 1, 9)])
def test_shapes(size: int, scales: int, maps: int) -> None:
    scattering = Scattering(size, num_scales=scales)
    assert scattering.num_maps == maps
    side = size // 2**scales
    assert scattering(torch.zeros(2, size, size)).shape == (2, maps, side, side)
    assert sorted(scattering.mirrored_maps()) == list(range(maps))


@pytest.mark.parametrize("words", [{"size": 30}, {"size": 4}, {"size": 32, "num_scales": 0}])
def test_sizes_that_do_not_fit_are_refused(words: dict[str, int]) -> None:
    with pytest.raises(InputError):
        Scattering(**words)


def test_images_of_another_shape_are_refused(scattering: Scattering) -> None:
    with pytest.raises(InputError, match="16"):
        scattering(torch.zeros(2, 17, 16))
