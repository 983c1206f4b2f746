"""The checks pass what is right and catch what is not."""

from __future__ import annotations

import numpy as np
import pytest
from torch import nn

from leptonai.testing import FakeClock, check_augment, check_column, check_flat_learner, check_learner
from leptonai.training.data.augment import RandomFlip
from leptonai.training.data.dataset import ArrayColumn, Arrays, Data
from leptonai.training.data.draws import Draws
from leptonai.training.job import TrainJob
from leptonai.training.learner import Alone, Batch
from leptonai.training.optimizers import Adam
from leptonai.training.pytorch.flat import TorchFlatLearner
from leptonai.training.pytorch.learner import TorchLearner
from leptonai.training.pytorch.passes import TorchOptions

rng = np.random.default_rng(4)
BATCH = (rng.normal(size=(9, 3, 4, 4)).astype(np.float32), rng.integers(0, 2, 9))


def test_our_own_pass() -> None:
    check_column(ArrayColumn(BATCH[0]))
    check_augment(RandomFlip(), BATCH)


def test_an_augmentation_with_random_numbers_of_its_own_is_caught() -> None:
    generator = np.random.default_rng(0)

    def augment(batch: Batch, draws: Draws) -> Batch:
        return (batch[0] + generator.normal(size=batch[0].shape), *batch[1:])

    with pytest.raises(AssertionError, match="depends on the number of workers"):
        check_augment(augment, BATCH)


def test_a_column_that_sorts_its_indices_is_caught() -> None:
    class Sorting(ArrayColumn):
        __slots__ = ()

        def take(self, indices, /):  # type: ignore[no-untyped-def]
            return self.array.take(np.sort(indices), axis=0)

    with pytest.raises(AssertionError, match="does not follow its indices"):
        check_column(Sorting(BATCH[0]))


def test_the_pytorch_learner_passes_and_one_that_forgets_its_momentum_is_caught() -> None:
    def make() -> TorchLearner:
        job = TrainJob(
            model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), data=Data(train=Arrays(*BATCH)),
            loss="cross_entropy", optimizer=Adam(lr=0.01), steps=5, global_batch_size=9,
        )  # fmt: skip
        return TorchLearner(job, Alone(), TorchOptions())

    check_learner(make, BATCH)

    class Forgetful(TorchLearner):
        def restore(self, state):  # type: ignore[no-untyped-def]
            super().restore(state)
            self._optimizer.state.clear()

    def make_forgetful() -> TorchLearner:
        made = make()
        made.__class__ = Forgetful
        return made

    with pytest.raises(AssertionError, match="does not go on exactly"):
        check_learner(make_forgetful, BATCH)


def test_a_flat_learner_that_weighs_or_clears_its_gradients_wrongly_is_caught() -> None:
    def make(weight: float = 1.0, clears: bool = True) -> TorchFlatLearner:
        job = TrainJob(
            model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(48, 2)), data=Data(train=Arrays(*BATCH)),
            loss="cross_entropy", optimizer=Adam(lr=0.01), steps=5, global_batch_size=9,
        )  # fmt: skip
        learner = TorchFlatLearner(job, TorchOptions())
        gradient = learner.gradient

        def wrong(batch: Batch, *, num_examples: int, seed: int) -> float:
            if not clears and not len(batch[0]):
                return 0.0
            scaled = num_examples if weight == 1.0 else round(num_examples * weight)
            return gradient(batch, num_examples=scaled, seed=seed)

        learner.gradient = wrong  # type: ignore[method-assign]
        return learner

    check_flat_learner(make, BATCH)
    with pytest.raises(AssertionError, match="the loss rises by"):
        check_flat_learner(lambda: make(weight=2.0), BATCH)
    with pytest.raises(AssertionError, match="an empty batch must give zeros"):
        check_flat_learner(lambda: make(clears=False), BATCH)


def test_the_fake_clock_moves_by_hand() -> None:
    clock = FakeClock(start_seconds=5)
    clock.advance(1.5)
    assert clock.now_seconds() == clock.monotonic_seconds() == 6.5
