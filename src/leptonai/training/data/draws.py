"""Random numbers as a function of the position in the run, alike however many workers share a batch."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# A word of the Philox key says what the numbers are for, so that no two uses share a stream.
PURPOSE_ORDER = 1
PURPOSE_AUGMENT = 2


def random_words(
    count: int, *, seed: int, purpose: int, epoch: int = 0, step: int = 0, call: int = 0
) -> NDArray[np.uint64]:
    """``count`` random 64-bit words, a pure function of the arguments.

    Philox takes a 128-bit key and a 256-bit counter: seed and purpose are the key, the position is the start
    of the counter, whose lowest word is left for the numbers themselves, so no two streams overlap. Only the
    bit generator is used, never ``numpy.random.Generator``: numpy promises the same bits in every release for
    the former alone (NEP 19), and a resumed run may meet another release.

    Args:
        count: how many, >= 0.
        seed: of the job, >= 0; only its lowest 64 bits count.
        purpose: one of the ``PURPOSE_`` constants.
        epoch: 0-based.
        step: 0-based.
        call: how many draws came before in this step.

    Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".
    """
    # Arrays, not lists: numpy would turn a list with a word above 2**63 into floats and lose its low bits.
    key = np.array([seed & 0xFFFF_FFFF_FFFF_FFFF, purpose], np.uint64)
    philox = np.random.Philox(key=key, counter=np.array([0, call, step, epoch], np.uint64))
    words: NDArray[np.uint64] = philox.random_raw(count)
    return words


class Draws:
    """Random numbers for one worker's share of a global batch.

    Each call draws for the whole global batch and cuts out the share, so an example gets the same numbers
    whichever worker holds it. Workers must make the same calls in the same order.

    Args:
        seed: of the job, >= 0.
        epoch: 0-based epoch.
        step: 0-based optimiser step.
        num_examples: size of the global batch.
        share: this worker's examples in it.

    >>> whole = Draws(seed=1, epoch=0, step=7, num_examples=5, share=slice(0, 5)).integers(0, 100)
    >>> part = Draws(seed=1, epoch=0, step=7, num_examples=5, share=slice(3, 5)).integers(0, 100)
    >>> bool((whole[3:5] == part).all())
    True
    """

    def __init__(self, *, seed: int, epoch: int, step: int, num_examples: int, share: slice) -> None:
        self._seed, self._epoch, self._step = seed, epoch, step
        self._num_examples, self._share = num_examples, share
        self._num_calls = 0

    def __len__(self) -> int:
        """Examples in this worker's share."""
        return len(range(*self._share.indices(self._num_examples)))

    def integers(self, low: int, high: int) -> NDArray[np.int64]:
        """Whole numbers in [low, high), one an example; ``high - low`` is at most 2**32."""
        assert low < high <= low + (1 << 32)
        # Multiply and shift: the bias towards some values is below (high - low) / 2**32.
        scaled = (self._words() >> np.uint64(32)) * np.uint64(high - low) >> np.uint64(32)
        return scaled.astype(np.int64) + low

    def uniform(self, low: float = 0.0, high: float = 1.0) -> NDArray[np.float64]:
        """Numbers in [low, high), one an example."""
        fractions: NDArray[np.float64] = (self._words() >> np.uint64(11)).astype(np.float64) * 2.0**-53
        return low + (high - low) * fractions

    def flags(self, probability: float = 0.5) -> NDArray[np.bool_]:
        """True with the given probability, one an example."""
        return self.uniform() < probability

    def _words(self) -> NDArray[np.uint64]:
        self._num_calls += 1
        words = random_words(
            self._num_examples,
            seed=self._seed,
            purpose=PURPOSE_AUGMENT,
            epoch=self._epoch,
            step=self._step,
            call=self._num_calls,
        )
        return words[self._share]
