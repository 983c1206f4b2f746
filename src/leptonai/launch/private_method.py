"""A private run's steps in a worker: secret sampling, clipped and noisy sums, a lease before each step."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from leptonai.launch.engine import FrameworkName
from leptonai.security.privacy.plan import PrivatePlan, plan_from_words, users_as_units
from leptonai.security.privacy.sampling import FixedOrder, PoissonSampler, UserSampler
from leptonai.training.data.order import GlobalBatch

if TYPE_CHECKING:
    from leptonai.training.data.dataset import Data
    from leptonai.training.job import TrainJob
    from leptonai.training.step_method import GradientSum


class PrivateSampler:
    """Satisfies :class:`leptonai.training.step_method.Sampler` with the sampling that the plan accounts for.

    Args:
        key: 32 secret bytes, equal on all workers; with it the samples can be told.
        num_examples: in the data, truly.
        steps_per_epoch: for reports.
        users_N: each example's user, where users are the unit.
    """

    def __init__(
        self,
        plan: PrivatePlan,
        *,
        key: bytes,
        num_examples: int,
        steps_per_epoch: int,
        users_N: NDArray[np.int64] | None,
    ) -> None:
        self._steps_per_epoch = steps_per_epoch
        self._draw: Callable[[int], NDArray[np.int64]]
        if plan.correlation == "banded":
            self._draw = FixedOrder(num_examples, plan.examples_per_step).units
        elif users_N is not None:
            self._draw = UserSampler(
                key, users_N=users_N, sample_rate=plan.sample_rate,
                examples_per_user=plan.examples_per_user, max_batch=plan.max_batch,
            ).examples  # fmt: skip
        else:
            self._draw = PoissonSampler(
                key, num_units=num_examples, sample_rate=plan.sample_rate, max_batch=plan.max_batch
            ).units

    def batch(self, step: int) -> GlobalBatch:
        epoch, step_in_epoch = divmod(step, self._steps_per_epoch)
        return GlobalBatch(epoch, step_in_epoch, self._draw(step))


class PrivateMethod:
    """Satisfies :class:`leptonai.training.step_method.StepMethod`.

    Args:
        lease: asks the launcher for leave to release steps up to a number; the answer is how far the leave goes.
    """

    def __init__(
        self,
        plan: PrivatePlan,
        sampler: PrivateSampler,
        *,
        framework: FrameworkName,
        num_examples: int,
        lease: Callable[[int], int],
    ) -> None:
        self._plan, self._sampler, self._framework = plan, sampler, framework
        self._num_examples, self._lease, self._leased = num_examples, lease, 0

    @property
    def sampler(self) -> PrivateSampler:
        return self._sampler

    @property
    def num_examples(self) -> int:
        return self._num_examples

    @property
    def examples_per_step(self) -> int:
        return self._plan.examples_per_step

    def gradients(self, model: Any) -> GradientSum:
        if self._framework == "tensorflow":
            from leptonai.security.privacy.tensorflow.private_sum import KerasPrivateSum

            return KerasPrivateSum(model, self._plan)
        from leptonai.security.privacy.pytorch.private_sum import PrivateSum

        return PrivateSum(model, self._plan)

    def charge(self, step: int) -> None:
        if step > self._leased:
            self._leased = self._lease(step)


def draw_seed(words: Mapping[str, Any]) -> int:
    """The secret seed of dropout and augmentation in this launch, from the sampling key."""
    digest = hashlib.blake2b(bytes.fromhex(words["key"]), digest_size=8, person=b"lepton draws").digest()
    return int.from_bytes(digest, "little") >> 1


def private_method(
    job: TrainJob,
    data: Data,
    words: Mapping[str, Any],
    *,
    framework: FrameworkName,
    lease: Callable[[int], int],
) -> PrivateMethod:
    """What the launcher told this worker of its private run, joined.

    Args:
        words: ``plan``, ``key`` (hex) and ``num_examples`` (as publicly known).
    """
    assert job.privacy is not None
    plan = plan_from_words(words["plan"])
    users = job.privacy.users
    users_N = None if users is None else users_as_units(users(), num_examples=len(data.train))
    sampler = PrivateSampler(
        plan, key=bytes.fromhex(words["key"]), num_examples=len(data.train), users_N=users_N,
        steps_per_epoch=job.steps_per_epoch(words["num_examples"]),
    )  # fmt: skip
    return PrivateMethod(plan, sampler, framework=framework, num_examples=words["num_examples"], lease=lease)
