"""Looking at a private job before it runs: whether it can keep its promise, with which noise, on which data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from leptonai.core.errors import InputError, Refused
from leptonai.core.privacy import Privacy
from leptonai.launch.engine import FrameworkName
from leptonai.launch.jobs import JobFile, load_job
from leptonai.security.privacy.ledger.digest import content_digest
from leptonai.security.privacy.ledger.entries import Dataset
from leptonai.security.privacy.plan import plan_privately, users_as_units
from leptonai.training.optimizers import Lamb

if TYPE_CHECKING:
    from leptonai.training.data.dataset import Data
    from leptonai.training.job import TrainJob


def scout_private(job: TrainJob, framework: FrameworkName, model: Any, data: Data) -> dict[str, Any]:
    """The run's private plan and the identity of its data; JSON-ready.

    Raises:
        Refused: something in the job would void the guarantee.
        InputError: sizes do not fit together.
    """
    privacy = job.privacy
    assert privacy is not None
    check_job(job, privacy)
    num_parameters = _check_model(job, framework, model, data)
    num_units, num_examples = _sizes(privacy, data)
    plan = plan_privately(
        privacy, num_units=num_units, batch_size=job.global_batch_size,
        steps=job.total_steps(num_examples), num_parameters=num_parameters,
    )  # fmt: skip
    return {
        "plan": plan.to_json(),
        "num_examples": num_examples,
        "epsilon": plan.epsilon(plan.steps),
        "digest": _digest(data),
        "tenant": privacy.tenant,
        "block": privacy.block,
    }


def dataset_of_job(path: Path) -> Dataset:
    """The data set that a job file trains on, as the ledger knows it.

    Raises:
        InputError: the file or its data is wrong.
    """
    job = load_job(path)
    return Dataset(digest=_digest(job.load_data()), name=job.name or JobFile(path=path).task)


def _digest(data: Data) -> str:
    return content_digest((data.origin or data.train).columns)


def check_job(job: TrainJob, privacy: Privacy) -> None:
    """Refuse settings that would void the guarantee, or whose effect on it is not known."""
    if job.parameter_server is not None:
        mode = job.parameter_server.consistency
        raise Refused(
            f"a private run cannot use a parameter server (consistency {mode})",
            hint="its workers would release noisy gradients one by one, which costs far more: leave "
            "parameter_server out",
        )
    if not job.shuffle and privacy.correlation == "independent":
        raise Refused(
            "TrainJob: shuffle=False fixes which examples meet in a step, the guarantee needs a secret sample",
            hint="leave shuffle out, or ask for correlation='banded', which needs no secret sample",
        )
    if job.clip_norm is not None:
        raise InputError(
            "TrainJob: clip_norm cuts the noisy sum, privacy has its own clip for each example",
            hint="leave clip_norm out and set Privacy(clip=...)",
        )
    if job.precision == "bfloat16":
        raise Refused(
            "TrainJob: in bfloat16 a gradient's norm is not known well enough to clip it",
            hint="precision='float32'",
        )
    if isinstance(job.optimizer, Lamb):
        raise InputError("TrainJob: LAMB runs in parameter servers only", hint="take SGD, Adam or AdamW")
    if privacy.population is not None and job.epochs is not None:
        raise Refused(
            "TrainJob: with a secret number of examples the run's length must be given in steps",
            hint="write steps=... instead of epochs=...",
        )


def _check_model(job: TrainJob, framework: FrameworkName, model: Any, data: Data) -> int:
    """Refuse layers that mix examples; returns the number of trainable parameters."""
    rows = np.arange(min(4, len(data.train)), dtype=np.int64)
    batch = data.prepared(data.train.take(rows))
    if framework == "tensorflow":
        from leptonai.security.privacy.tensorflow.refusals import check_model as check_keras

        check_keras(model)
        return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)
    from leptonai.launch.private_checks import check_torch_job

    return check_torch_job(job, model, batch)


def _sizes(privacy: Privacy, data: Data) -> tuple[int, int]:
    """Units and examples, as publicly known."""
    num_examples = len(data.train)
    if privacy.users is None:
        units = privacy.population or num_examples
        return units, units
    users_N = users_as_units(privacy.users(), num_examples=num_examples)
    units = privacy.population or len(np.unique(users_N))
    return units, units * privacy.examples_per_user
