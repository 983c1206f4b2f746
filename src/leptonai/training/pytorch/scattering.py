"""The scattering transform: fixed features of an image from two layers of wavelets, with nothing learned.

An image is convolved with Morlet wavelets of several sizes and directions, the modulus is taken, this is done once
more, and a Gaussian averages each map so far that one value in ``2**num_scales`` is enough in each direction. The
filters are formulas, so no example ever entered them: a private run pays nothing for these features.

Source: Bruna & Mallat 2013, "Invariant scattering convolution networks"; filters as in Kymatio (Andreux et al. 2020):
envelope 0.8 * 2**j, frequency 3 pi / 4 / 2**j, slant 4 / directions. For private training: Tramer & Boneh 2021.

Letters: B images, N pixels of a side with its border, L directions, K maps, O values of a map's side.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from leptonai.core.errors import InputError

ENVELOPE = 0.8
"""Deviation of the finest wavelet's Gaussian, in pixels."""
FREQUENCY = 0.75 * math.pi
"""Of the finest wavelet's wave, in radians a pixel."""
_IMAGES_AT_ONCE = 48
"""Intermediate maps of so many images of 32 x 32 pixels stay within a processor's cache."""


class Scattering:
    """The scattering coefficients of square images in one colour.

    Maps come in this order: the averaged image; one map for each size j and direction; one for each pair of a
    first (j1, direction) and a coarser second one (j2 > j1, direction). Values lie at the centres of cells of
    ``2**num_scales`` pixels, so that a mirrored image has mirrored maps.

    Args:
        size: pixels of a side, a multiple of ``2**num_scales``.
        num_scales: sizes of wavelets, each twice the one before, >= 1.
        num_directions: an even number >= 2, over half a turn.

    Raises:
        InputError: the size is no multiple, or too small for the wavelets.

    >>> Scattering(32)(torch.zeros(2, 32, 32)).shape
    torch.Size([2, 81, 8, 8])
    """

    def __init__(self, size: int, *, num_scales: int = 2, num_directions: int = 8) -> None:
        cell = 2**num_scales
        if num_scales < 1 or num_directions < 2 or num_directions % 2:
            raise InputError("Scattering: expected num_scales >= 1 and an even num_directions >= 2")
        if size < 2 * cell or size % cell:
            raise InputError(
                f"Scattering: expected a size that is a multiple of {cell} and at least {2 * cell}, found {size}"
            )
        self.size, self.num_scales, self.num_directions = size, num_scales, num_directions
        self._border = cell
        side = size + 2 * cell
        self._waves = _waves(side, num_scales, num_directions)
        self._averages = [_averages(side, num_scales, scale=scale) for scale in range(num_scales)]

    @property
    def num_maps(self) -> int:
        """Maps of one image: 1 + JL + L^2 J (J - 1) / 2."""
        scales, directions = self.num_scales, self.num_directions
        return 1 + scales * directions + directions**2 * scales * (scales - 1) // 2

    @property
    def side(self) -> int:
        """Values of a map's side."""
        return int(self.size // 2**self.num_scales)

    def mirrored_maps(self) -> list[int]:
        """For each map, which one a left-right mirrored image shows in its place, mirrored.

        A direction's angle changes sign, so it becomes another direction.
        """
        directions = [
            (self.num_directions - 2 - each) % self.num_directions for each in range(self.num_directions)
        ]
        found = [0]
        for _ in range(self.num_scales):
            start = len(found)
            found += [start + each for each in directions]
        for _ in range(self.num_scales * (self.num_scales - 1) // 2):
            start = len(found)
            found += [
                start + first * self.num_directions + second for first in directions for second in directions
            ]
        return found

    @torch.no_grad()
    def __call__(self, images_BHW: torch.Tensor) -> torch.Tensor:
        """Coefficients (B, K, O, O) as float32.

        Raises:
            InputError: the images have another shape than (B, size, size).
        """
        if images_BHW.ndim != 3 or images_BHW.shape[1:] != (self.size, self.size):
            expected = f"(B, {self.size}, {self.size})"
            raise InputError(f"Scattering: expected images {expected}, found {tuple(images_BHW.shape)}")
        pieces = images_BHW.to(torch.float32).split(_IMAGES_AT_ONCE)
        return torch.cat([self._maps(piece) for piece in pieces])

    def _maps(self, images_BHW: torch.Tensor) -> torch.Tensor:
        bordered = functional.pad(images_BHW[:, None], (self._border,) * 4, mode="reflect")
        first: list[torch.Tensor] = [self._averaged(bordered, 0)]
        second: list[torch.Tensor] = []
        spectrum = torch.fft.fft2(bordered)
        for scale in range(self.num_scales):
            maps = torch.fft.ifft2(_thinned(spectrum * self._waves[0, scale], 2**scale)).abs()
            first.append(self._averaged(maps, scale))
            if scale + 1 < self.num_scales:
                second += self._second_order(torch.fft.fft2(maps), scale)
        return torch.cat(first + second, dim=1)

    def _second_order(self, spectra: torch.Tensor, scale: int) -> list[torch.Tensor]:
        found = []
        for coarser in range(scale + 1, self.num_scales):
            waves, step = self._waves[scale, coarser], 2 ** (coarser - scale)
            for direction in range(self.num_directions):
                # One direction at a time, so that the intermediate maps stay in the cache.
                maps = torch.fft.ifft2(_thinned(spectra[:, direction : direction + 1] * waves, step)).abs()
                found.append(self._averaged(maps, coarser))
        return found

    def _averaged(self, maps: torch.Tensor, scale: int) -> torch.Tensor:
        average = self._averages[scale]
        return average @ maps @ average.T


def morlet(side: int, *, scale: int, direction: int, num_directions: int) -> torch.Tensor:
    """A Morlet wavelet in space, centred on (0, 0) of a periodic grid: a wave in a Gaussian, with mean zero.

    Returns:
        complex128, (side, side).
    """
    angle = (num_directions // 2 - 1 - direction) * math.pi / num_directions
    sigma, slant = ENVELOPE * 2**scale, 4 / num_directions
    places = torch.arange(-2 * side, 3 * side, dtype=torch.float64)
    down, right = torch.meshgrid(places, places, indexing="ij")
    along = math.cos(angle) * down + math.sin(angle) * right
    across = math.cos(angle) * right - math.sin(angle) * down
    envelope = torch.exp(-(along**2 + (slant * across) ** 2) / (2 * sigma**2))
    envelope *= slant / (2 * math.pi * sigma**2)
    wave = _wrapped(envelope * torch.exp(1j * FREQUENCY / 2**scale * along), side)
    envelope = _wrapped(envelope, side)
    return wave - wave.sum() / envelope.sum() * envelope


def _wrapped(values: torch.Tensor, side: int) -> torch.Tensor:
    return values.reshape(5, side, 5, side).sum((0, 2))


def _waves(side: int, num_scales: int, num_directions: int) -> dict[tuple[int, int], torch.Tensor]:
    """Fourier transforms of the wavelets of size ``scale``, for maps thinned ``thinned`` times, by (thinned, scale).

    They include the factor by which :func:`_thinned`, a sum, differs from a mean.
    """
    found = {}
    for scale in range(num_scales):
        of_scale = [
            morlet(side, scale=scale, direction=each, num_directions=num_directions)
            for each in range(num_directions)
        ]
        spectra = torch.fft.fft2(torch.stack(of_scale)).real
        for thinned in {0, *range(scale)}:
            step = 2 ** (scale - thinned)
            found[thinned, scale] = (_thinned(spectra, 2**thinned) / step**2).to(torch.float32)
    return found


def _thinned(spectra: torch.Tensor, step: int) -> torch.Tensor:
    """Spectrum of every ``step``-th value in each direction, times ``step`` squared."""
    side = spectra.shape[-1] // step
    rows = spectra[..., :side, :]
    for place in range(1, step):
        rows = rows + spectra[..., place * side : (place + 1) * side, :]
    found = rows[..., :side]
    for place in range(1, step):
        found = found + rows[..., place * side : (place + 1) * side]
    return found


def _averages(side: int, num_scales: int, *, scale: int) -> torch.Tensor:
    """(O, side / 2**scale) weights of the Gaussian around each cell's centre, for maps thinned ``scale`` times.

    A Gaussian of two dimensions is one of rows times one of columns, so two products of matrices apply it.
    """
    cell, sigma = 2**num_scales, ENVELOPE * 2 ** (num_scales - 1)
    centres = torch.arange(1, side // cell - 1, dtype=torch.float64) * cell + (cell - 1) / 2
    places = torch.arange(0, side, 2**scale, dtype=torch.float64)
    turns = torch.arange(-2, 3, dtype=torch.float64) * side
    away = centres[:, None, None] - places[:, None] + turns
    weights = torch.exp(-(away**2) / (2 * sigma**2)).sum(-1)
    scaled: torch.Tensor = weights * 2**scale / (math.sqrt(2 * math.pi) * sigma)
    return scaled.to(torch.float32)
