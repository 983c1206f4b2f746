"""What the launcher must know of a job that asks for a parameter server, found in the scout."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from leptonai.compute.plan import Tuning
from leptonai.core.errors import InputError
from leptonai.core.values import value_to_json
from leptonai.launch.frameworks import Framework, Place
from leptonai.training.optimizer_words import optimizer_to_json
from leptonai.training.optimizers import SGD, Adagrad, Adam, AdamW, Lamb, Optimizer
from leptonai.training.parameter_server.codecs.parse import check_codec, mode_codec
from leptonai.training.parameter_server.consistency import Asp, AsyncDiloco, consistency_text, is_local
from leptonai.training.parameter_server.kernels import state_names
from leptonai.training.parameter_server.outer import outer_optimizer

if TYPE_CHECKING:
    from leptonai.launch.engine import FrameworkName
    from leptonai.training.job import TrainJob


def scout_served(job: TrainJob, framework: Framework, tuning: Tuning, place: Place) -> dict[str, Any]:
    """The servers' side of the job, as JSON-ready values.

    Raises:
        InputError: its optimiser, codec or model does not go with a parameter server.
    """
    settings = job.parameter_server
    assert settings is not None
    mode = settings.mode
    inner, server = served_optimizers(job)
    if settings.hogwild and not (isinstance(mode, Asp) and inner == SGD(lr=inner.lr)):
        raise InputError(
            "ParameterServer: hogwild goes with asp and plain SGD alone",
            hint='consistency="asp", optimizer=SGD(lr=...)',
        )
    if settings.durability == "replica":
        raise InputError(
            "ParameterServer: a replica needs a second machine, the local engine runs on this one alone",
            hint='durability="journal" survives the death of a server process',
        )
    if settings.codec:
        check_codec(settings.codec, mode)
    learner = framework.flat_learner(job, tuning, place)
    rule = job.stop_when
    return {
        "tensors": [value_to_json(tensor) for tensor in learner.tensors],
        "optimizer": optimizer_to_json(server),
        "codec": mode_codec(settings.codec, mode),
        "state_names": list(state_names(server)),
        "base_learning_rate": inner.lr,
        "mode": consistency_text(mode),
        "local": is_local(mode),
        "settings": {**dataclasses.asdict(settings), "consistency": consistency_text(mode)},
        "age_decay": mode.age_decay if isinstance(mode, AsyncDiloco) else 0.0,
        "num_examples": len(job.load_data().train),
        "num_evaluate": len(job.load_data().evaluate or ()),
        "global_batch_size": job.global_batch_size,
        "evaluate": {
            "every_epochs": job.evaluate.every_epochs,
            "every_steps": job.evaluate.every_steps,
            "from_step": job.evaluate.from_step,
        },
        "save_every_steps": job.checkpoints.every_steps,
        "save_every_seconds": job.checkpoints.every_seconds,
        "stop_when": None if rule is None else dataclasses.asdict(rule),
        "report_seconds": job.speed.log_every_seconds,
        "seed": job.seed,
        "elastic": None if job.elastic is None else dataclasses.asdict(job.elastic),
    }


def served_optimizers(job: TrainJob) -> tuple[Optimizer, Optimizer]:
    """The job's own optimiser, and the one its servers run.

    Raises:
        InputError: the job's is not one of leptonai's values.
    """
    assert job.parameter_server is not None
    found = Adam() if job.optimizer is None else job.optimizer
    if not isinstance(found, SGD | Adam | AdamW | Adagrad | Lamb):
        raise InputError(
            "TrainJob: with a parameter server the optimizer must be one of leptonai's own values",
            hint="optimizer=SGD(...), Adam(...), AdamW(...), Adagrad(...) or Lamb(...)",
        )
    return found, outer_optimizer(job.parameter_server.mode, found)


def scout_tables(job: TrainJob, framework: FrameworkName, model: Any) -> list[dict[str, Any]]:
    """The sparse tables of the job's model, as JSON-ready values, in the order of their names.

    Raises:
        InputError: the job asks for what tables do not go with.
    """
    from leptonai.launch.served_tables import tables_in
    from leptonai.training.parameter_server.tables.spec import table_to_json

    tables = tables_in(framework, model)
    if not tables:
        return []
    settings, names = job.parameter_server, ", ".join(repr(table.name) for table in tables)
    if settings is None:
        raise InputError(
            f"the model has sparse tables ({names}), whose rows live on parameter servers",
            hint="add parameter_server=ParameterServer() to the job, also for a single worker",
        )
    if is_local(settings.mode):
        raise InputError(
            f"the model has sparse tables ({names}), which {consistency_text(settings.mode)} does not update",
            hint="bsp, ssp, asp or backup",
        )
    for name in ("hogwild", "record", "delay_compensation", "staleness_scaled_lr"):
        if getattr(settings, name):
            raise InputError(f"ParameterServer: {name} does not go with sparse tables ({names})")
    return [table_to_json(table) for table in tables]
