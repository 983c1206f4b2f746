"""A finished private run, opened up for its proof: the parts of its steps as the run itself computes them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.launch.jobs import load_job
from leptonai.launch.private_method import PrivateSampler
from leptonai.launch.rundir import RunDirectory, read_json_object
from leptonai.security.privacy.plan import PrivatePlan, plan_from_words, users_as_units
from leptonai.security.privacy.proof.trainer import Declared, Example, Floats, Units
from leptonai.training.data.dataset import Data
from leptonai.training.job import TrainJob
from leptonai.training.learner import Alone, Batch, shares


def open_trainer(run_dir: Path) -> RealTrainer:
    """The trainer of a run, rebuilt from its job file; for PyTorch jobs.

    Raises:
        InputError: the run is not private, its job was not a file or is no longer that job, or is a Keras job.
    """
    words = read_json_object(run_dir / "job.json")
    if "private" not in words:
        raise InputError(f"{run_dir}: not a private run", hint="give the job privacy=Privacy(...)")
    if words["file"] is None:
        raise InputError(
            f"{run_dir}: its job lived in a program, which cannot be run again from here",
            hint="put the job into a file to audit it",
        )
    if words["framework"] != "pytorch":
        raise InputError(f"{run_dir}: only PyTorch runs can be opened up", hint="see docs/pitfalls.md")
    job = load_job(Path(words["file"]), tuple(words["overrides"]))
    data = job.load_data()
    if data.fingerprint() != words["identity"]["data"]:
        raise InputError(f"{run_dir}: its job's data has changed since", hint="put the data back as it was")
    plan = plan_from_words(words["private"]["plan"])
    return RealTrainer(job, data, plan, ranks=RunDirectory(run_dir).plan().num_workers)


class RealTrainer:
    """Satisfies :class:`~leptonai.security.privacy.proof.trainer.OpenTrainer` with the run's own code, without dropout.

    Attributes:
        declared: what the run says of itself.

    Args:
        ranks: workers among which a step's examples are cut.
        without: units that the data lacks.
    """

    def __init__(
        self,
        job: TrainJob,
        data: Data,
        plan: PrivatePlan,
        *,
        ranks: int = 1,
        without: frozenset[int] = frozenset(),
    ) -> None:
        self._job, self._data, self._plan, self._ranks, self._without = job, data, plan, ranks, without
        users = job.privacy.users if job.privacy is not None else None
        self._users_N = None if users is None else users_as_units(users(), num_examples=len(data.train))
        self.reset()
        self.declared = self._declared()

    def _declared(self) -> Declared:
        plan = self._plan
        exact = plan.precision == "exact"  # rounding to the grid adds a little, to the noise as well
        clip = self._sums.sensitivity_grid * self._sums.unit if exact else plan.clip
        return Declared(
            sensitivity=clip * plan.sensitivity_clips, noise_multiplier=plan.gradient_noise_multiplier,
            sample_rate=plan.sample_rate, num_units=plan.num_units, num_parameters=plan.num_parameters,
            steps=plan.steps, epsilon=plan.epsilon(plan.steps), delta=plan.delta,
            normaliser=plan.examples_per_step, ranks=self._ranks, max_batch=plan.max_batch,
            correlation=plan.correlation, charges=plan.charges(plan.steps),
        )  # fmt: skip

    def without(self, unit: int) -> RealTrainer:
        """The same run on data that lacks this unit."""
        return RealTrainer(
            self._job, self._data, self._plan, ranks=self._ranks, without=self._without | {unit}
        )

    def example(self, unit: int) -> Example:
        """One example of this unit."""
        columns = self._data.prepared(self._data.train.take(self._examples_of(np.array([unit]))[:1]))
        if len(columns) != 2:
            raise InputError(f"expected examples of inputs and a label, found {len(columns)} columns")
        return columns[0][0].copy(), columns[1][0].copy()

    def reset(self) -> None:
        """Initial weights and a fresh optimiser."""
        self._sums: Any = None
        self._learner = self._new_learner()

    def _new_learner(self) -> Any:
        from leptonai.security.privacy.pytorch.private_sum import PrivateSum
        from leptonai.training.pytorch.passes import TorchOptions
        from leptonai.training.pytorch.summed import SummedLearner

        trainer = self

        class Opened:
            """Hands out the sum."""

            def gradients(self, model: Any) -> PrivateSum:
                made = trainer._sums = PrivateSum(model, trainer._plan)
                return made

        learner = SummedLearner(self._job, Alone(), TorchOptions(), cast(Any, Opened()))
        for module in learner.model.modules():  # else what is drawn for a unit depends on who else is there
            for name in ("p", "dropout"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
        return learner

    def batch(self, step: int, key: bytes) -> Units:
        """The units of a step, on all ranks together."""
        sampler = PrivateSampler(
            self._plan, key=key, num_examples=len(self._data.train), users_N=self._users_N, steps_per_epoch=1
        )
        examples = sampler.batch(step).indices
        units = examples if self._users_N is None else np.unique(self._users_N[examples])
        return units[~np.isin(units, list(self._without))]

    def _examples_of(self, units: Units) -> NDArray[np.int64]:
        if self._users_N is None:
            return units
        most = self._plan.examples_per_user
        found = [np.flatnonzero(self._users_N == unit)[:most] for unit in units]
        return np.concatenate(found) if found else np.empty(0, np.int64)

    def clipped_sum(self, units: Units, extra: Sequence[Example] = ()) -> Floats:
        """(P,) sum of clipped gradients before noise, rank by rank."""
        batch = self._batch(units, extra)
        total_P = np.zeros(self._plan.num_parameters, np.float64)
        for share in shares(len(batch[0]), self._ranks):
            if share.stop > share.start:
                self._learner.add(tuple(column[share] for column in batch))
            total_P += self._sums.part(leads=False)[: len(total_P)] * self._sums.unit
        return total_P.astype(np.float32)

    def _batch(self, units: Units, extra: Sequence[Example]) -> Batch:
        columns = self._data.prepared(self._data.train.take(self._examples_of(units)))
        for example in extra:
            columns = tuple(
                np.concatenate([column, np.asarray(part, column.dtype)[None]])
                for column, part in zip(columns, example, strict=True)
            )
        return columns

    def noise(self, step: int, key: bytes) -> Floats:
        """(P,) the noise that all ranks together add."""
        from leptonai.security.privacy.pytorch.private_sum import PrivateSum

        model = self._learner.model
        sums = PrivateSum(model, self._plan, key=_step_key(key, step))
        sums.values.update(self._sums.values)
        size = self._plan.num_parameters
        parts = [sums.part(leads=rank == 0)[:size] * sums.unit for rank in range(self._ranks)]
        return np.asarray(np.sum(parts, axis=0, dtype=np.float64), np.float32)

    def apply(self, noisy_sum_P: Floats) -> Floats:
        """One step of the optimiser; the new weights."""
        summed = noisy_sum_P / np.float32(self._sums.unit)
        if self._plan.clipping == "adaptive":  # the clip is held where it is
            summed = np.append(
                summed, np.float32((self._plan.clip_quantile - 0.5) * self._plan.examples_per_step)
            )
        self._learner.apply(summed)
        return np.concatenate([each.detach().numpy().ravel() for each in self._learner.parameters])

    def losses(self, units: Units, extra: Sequence[Example] = ()) -> Floats:
        """Each unit's loss at the weights of now."""
        every: list[Batch] = []
        for unit in units.tolist():
            every.append(self._batch(np.array([unit], np.int64), ()))
        every += [self._batch(np.empty(0, np.int64), (example,)) for example in extra]
        return np.array([self._learner.loss(batch) for batch in every], np.float32)


def _step_key(key: bytes, step: int) -> bytes:
    return hashlib.blake2b(step.to_bytes(8, "little"), key=key, digest_size=32).digest()
