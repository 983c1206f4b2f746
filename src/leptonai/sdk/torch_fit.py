"""``PyTorch.fit``: train any module on the cluster of the ``with`` block around the call."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cloudpickle
from numpy.typing import NDArray
from torch import nn

from leptonai.compute.engines.local import LocalEngine
from leptonai.core.errors import InputError
from leptonai.core.events import Event
from leptonai.core.privacy import Privacy
from leptonai.launch.engine import start_engine
from leptonai.launch.jobs import LiveJob
from leptonai.launch.request import EpochAnswer, EpochReport
from leptonai.sdk import sources
from leptonai.sdk.arguments import Examples, check_count, split
from leptonai.sdk.cluster import TrainingCluster, require_cluster
from leptonai.sdk.display import Display, display_for, show_curve
from leptonai.sdk.epochs import EpochLog, in_keras_order
from leptonai.sdk.history import History
from leptonai.sdk.run import final_state, run_live, search_path
from leptonai.sdk.sources import Source
from leptonai.sdk.torch_use import chosen_loss, torch_examples
from leptonai.training.data.dataset import Data
from leptonai.training.job import Checkpoints, Evaluate, Loss, Metric, Precision, TrainJob
from leptonai.training.pytorch.tensors import load_model
from leptonai.training.schedules import Constant, Schedule

Callback = Callable[[int, Mapping[str, float]], Any]
"""Called after each epoch with its 0-based number and metrics, the module up to date; True ends the run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchJob:
    """Builds the job in a worker; travels there by pickle through the private pipe.

    ``own_code`` is cloudpickle bytes of the module and the functions, unpickled anew for every model.
    """

    own_code: bytes
    search_path: tuple[str, ...]
    train: Source
    evaluate: Source | None
    settings: Mapping[str, Any]

    def __call__(self, arrays: Mapping[str, NDArray[Any]]) -> TrainJob:
        sys.path += [place for place in self.search_path if place not in sys.path]
        code = cloudpickle.loads(self.own_code)
        evaluate = None if self.evaluate is None else self.evaluate.open(arrays)
        return TrainJob(
            model=lambda: cloudpickle.loads(self.own_code)["module"],
            data=Data(train=self.train.open(arrays), evaluate=evaluate),
            loss=code["loss"],
            optimizer=code["optimizer"],
            schedule=code["schedule"],
            evaluate=Evaluate(metrics=code["metrics"], every_epochs=0 if evaluate is None else 1),
            checkpoints=Checkpoints(keep=1),
            **self.settings,
        )


def fit(
    module: nn.Module,
    x: Any,
    y: Any = None,
    batch_size: int = 32,
    epochs: int = 1,
    verbose: Any = "auto",
    callbacks: Sequence[Callback] | None = None,
    validation_split: float = 0.0,
    validation_data: Any = None,
    *,
    loss: Loss | None = None,
    optimizer: Any = None,
    metrics: Mapping[str, Metric] | None = None,
    schedule: Schedule | None = None,
    clip_norm: float | None = None,
    precision: Precision = "auto",
    seed: int | None = None,
    privacy: Privacy | None = None,
) -> History:
    """Train the module on the cluster, leave the trained weights in it, and return what was measured.

    Args:
        x, y: arrays or tensors, or a ``TensorDataset`` as ``x``; a tuple as ``x`` is several inputs. float64
            becomes float32.
        batch_size: examples in one optimiser step over all workers.
        callbacks: called after each epoch with its 0-based number and metrics; one that returns True ends the
            run.
        validation_split: share of the examples, from the end, to validate on.
        validation_data: (x, y) to validate on after each epoch.
        loss: as in ``TrainJob``; None: the one that fits the module's output and the labels.
        optimizer: as in ``TrainJob``; None: Adam.
        metrics: as in ``Evaluate``; None: accuracy where classes are learned.
        schedule, clip_norm, precision: as in ``TrainJob``.
        seed: of the data order and dropout; None: drawn from Python's generator.
        privacy: as in ``TrainJob``; the history then tells nothing of training examples.

    Raises:
        InputError: an argument is wrong, or there is no cluster around the call.
        Fault: a worker failed; the module keeps the weights it had.
    """
    cluster = require_cluster("fit")
    check_count("epochs", epochs), check_count("batch_size", batch_size)
    steering = _Steering(module, tuple(callbacks or ()), display_for(verbose, epochs=epochs))
    # The engine first: its imports take long, and go on while the data is looked at here.
    with start_engine() as engine:
        train, validation = _sets(x, y, validation_split, validation_data)
        found, fitting = chosen_loss(module, train, loss, "fit")
        code = {
            "module": module,
            "loss": found,
            "optimizer": optimizer,
            "schedule": schedule or Constant(),
            "metrics": fitting if metrics is None else metrics,
        }
        settings = {
            "global_batch_size": min(batch_size, len(train)),
            "epochs": epochs,
            "seed": random.randrange(2**31) if seed is None else seed,
            "precision": precision,
            "clip_norm": clip_norm,
            "privacy": privacy,
        }
        job = _live_job(type(module).__name__.lower(), code, settings, train, validation)
        _train(module, cluster, job, steering, engine)
    return steering.history


def _live_job(
    task: str,
    code: Mapping[str, Any],
    settings: Mapping[str, Any],
    train: Examples,
    validation: Examples | None,
) -> LiveJob:
    shared: dict[str, NDArray[Any]] = {}
    job = TorchJob(
        own_code=cloudpickle.dumps(code),
        search_path=search_path(),
        train=sources.put(train, "train", shared),
        evaluate=None if validation is None else sources.put(validation, "evaluate", shared),
        settings=settings,
    )
    return LiveJob(payload=cloudpickle.dumps(job), arrays=shared, task=task)


def _train(
    module: nn.Module, cluster: TrainingCluster, job: LiveJob, steering: _Steering, engine: LocalEngine
) -> None:
    gate = steering.answer if steering.callbacks else None
    try:
        result = run_live(job, cluster, engine=engine, on_event=steering, gate=gate)
    finally:
        steering.display.close()
    steering.log.close_epoch()
    load_model(module, final_state(result).tensors)
    steering.history.run_dir = result.run_dir
    if not steering.display.quiet:
        show_curve(result.run_dir)
    if result.status == "interrupted":
        raise KeyboardInterrupt


def _sets(x: Any, y: Any, validation_split: float, validation_data: Any) -> tuple[Examples, Examples | None]:
    train = torch_examples(x, y, "fit")
    if validation_data is None:
        return split(train, validation_split) if validation_split else (train, None)
    if not isinstance(validation_data, tuple | list) or len(validation_data) != 2:
        raise InputError("fit: expected validation_data=(x, y)")
    return train, torch_examples(validation_data[0], validation_data[1], "validation_data")


class _Steering:
    """Joins the events of the run, what is shown, the history, and the callbacks."""

    def __init__(self, module: nn.Module, callbacks: tuple[Callback, ...], display: Display) -> None:
        self._module, self.callbacks, self.display = module, callbacks, display
        self.history = History()
        self.log = EpochLog(self._end_epoch)
        self._stop = False

    def __call__(self, event: Event) -> None:
        self.log(event)
        self.display(event)

    def answer(self, report: EpochReport) -> EpochAnswer:
        """Show callbacks the module as it is after the epoch, and pass on whether to stop."""
        load_model(self._module, report.load_state().tensors)
        self.log.close_epoch()
        return EpochAnswer(stop=self._stop)

    def _end_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        logs = in_keras_order(metrics)
        self.display.end_epoch(logs)
        self.history.add(epoch, logs)
        said = [callback(epoch, logs) for callback in self.callbacks]
        self._stop = any(answer is True for answer in said)
