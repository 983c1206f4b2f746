"""``model.fit`` on a cluster: Keras's arguments in, a Keras ``History`` out, the trained weights in the model."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import tensorflow as tf

from leptonai.compute.engines.local import LocalEngine
from leptonai.core.errors import InputError
from leptonai.core.events import Event
from leptonai.launch.engine import start_engine
from leptonai.launch.jobs import LiveJob
from leptonai.launch.request import EpochAnswer, EpochReport
from leptonai.sdk import arguments, sources
from leptonai.sdk.arguments import Examples, check_count
from leptonai.sdk.callbacks import EpochCalls, check_callbacks
from leptonai.sdk.cluster import TrainingCluster
from leptonai.sdk.display import Display, display_for, show_curve
from leptonai.sdk.epochs import EpochLog, in_keras_order, validation_rule
from leptonai.sdk.keras_compile import ready_to_train
from leptonai.sdk.keras_data import Given, given
from leptonai.sdk.keras_job import WEIGHTS, KerasJob, pack_model
from leptonai.sdk.run import final_state, run_live, search_path
from leptonai.training.learner import LearnerState
from leptonai.training.tensorflow import tensors
from leptonai.training.tensorflow.metrics import compiled_metrics

DEFAULT_BATCH_SIZE = 32  # Keras's
EVALUATION_BATCH_SIZE = 512  # only speed depends on it


@dataclass(frozen=True, kw_only=True)
class FitRequest:
    """The arguments of Keras's ``fit``, under Keras's names."""

    x: Any
    y: Any
    batch_size: int | None
    epochs: int
    verbose: Any
    callbacks: Any
    validation_split: float
    validation_data: Any
    shuffle: Any
    class_weight: Mapping[int, float] | None
    sample_weight: Any
    initial_epoch: int
    steps_per_epoch: int | None
    validation_steps: int | None
    validation_batch_size: int | None
    validation_freq: int | list[int]


@dataclass(frozen=True, kw_only=True)
class _Sets:
    """What to train on and what to validate on."""

    train: Examples
    validation: Examples | None
    batch_size: int
    is_ordered: bool


def fit_on_cluster(model: Any, cluster: TrainingCluster, request: FitRequest) -> Any:
    """Train the model on the cluster.

    Raises:
        InputError: an argument is wrong, or cannot be honoured on a cluster.
        Fault: a worker failed; the model keeps the weights it had (with callbacks: of the last whole epoch).
    """
    check_count("epochs", request.epochs)
    for name in ("batch_size", "validation_batch_size", "validation_steps"):
        if getattr(request, name) is not None:
            check_count(name, getattr(request, name))
    check_count("initial_epoch", request.initial_epoch, smallest=0)
    callbacks = check_callbacks(request.callbacks)
    display = display_for(request.verbose, epochs=request.epochs, first_epoch=request.initial_epoch)
    # The engine first: its imports take long, and go on while the data is looked at here.
    with start_engine("tensorflow") as engine, tempfile.TemporaryDirectory(prefix="lepton-fit-") as folder:
        sets = _sets(model, request, Path(folder))
        ready_to_train(model, sets.train)
        steps = -(-len(sets.train) // sets.batch_size)
        calls = EpochCalls(
            model, callbacks, epochs=request.epochs, initial_epoch=request.initial_epoch, steps=steps
        )
        calls.begin()
        if request.initial_epoch < request.epochs and not model.stop_training:
            steering = _Steering(model, request, calls, display)
            job = _live_job(model, request, sets)
            _train(model, cluster, job, steering, engine, gated=bool(callbacks))
    model.optimizer.finalize_variable_values(model.trainable_variables)
    calls.end()
    return calls.history


def _train(
    model: Any,
    cluster: TrainingCluster,
    job: LiveJob,
    steering: _Steering,
    engine: LocalEngine,
    *,
    gated: bool,
) -> None:
    gate = steering.answer if gated else None
    try:
        result = run_live(job, cluster, engine=engine, on_event=steering, gate=gate)
    finally:
        steering.display.close()
    steering.finish()
    take_over(model, final_state(result))
    if not steering.display.quiet:
        show_curve(result.run_dir)
    if result.status == "interrupted":
        raise KeyboardInterrupt


class _Steering:
    """Joins the events of the run, what is shown, and the callbacks."""

    def __init__(self, model: Any, request: FitRequest, calls: EpochCalls, display: Display) -> None:
        rule = validation_rule(request.validation_freq)
        self._model, self._calls, self.display = model, calls, display
        self._log = EpochLog(self._end_epoch, validates=lambda epoch: rule(request.initial_epoch + epoch))
        self._said = EpochAnswer()

    def __call__(self, event: Event) -> None:
        self._log(event)
        self.display(event)

    def answer(self, report: EpochReport) -> EpochAnswer:
        """Show callbacks the model as it is after the epoch, and pass on what they decide."""
        take_over(self._model, report.load_state())
        self._log.close_epoch()
        return self._said

    def finish(self) -> None:
        """Close the last epoch."""
        self._log.close_epoch()

    def _end_epoch(self, epoch: int, metrics: dict[str, float]) -> None:
        logs = in_keras_order(metrics)
        self.display.end_epoch(logs)
        stop, rate = self._calls.end_epoch(epoch, logs)
        self._said = EpochAnswer(stop=stop, learning_rate=rate)


def take_over(model: Any, state: LearnerState) -> None:
    """Give the model and its optimiser the values of a state."""
    names = tensors.model_names(model) + tensors.optimizer_names(model.optimizer, model)
    tensors.write(names, [*model.weights, *model.optimizer.variables], state.tensors)


def _live_job(model: Any, request: FitRequest, sets: _Sets) -> LiveJob:
    config, own_code, weights = pack_model(model)
    shared: dict[str, Any] = {WEIGHTS: weights}
    frequency = request.validation_freq
    every = frequency if isinstance(frequency, int) else 1
    job = KerasJob(
        model=config,
        own_code=own_code,
        search_path=search_path(),
        train=sources.put(sets.train, "train", shared),
        evaluate=None if sets.validation is None else sources.put(sets.validation, "evaluate", shared),
        has_weights_column=sets.train.weights is not None,
        metrics=tuple(compiled_metrics(model)),
        global_batch_size=sets.batch_size,
        shuffle=bool(request.shuffle) and not sets.is_ordered,
        evaluation_batch_size=request.validation_batch_size or EVALUATION_BATCH_SIZE,
        evaluate_every_epochs=0 if sets.validation is None else every,
        epochs=request.epochs - request.initial_epoch,
        # Python's own generator, which keras.utils.set_random_seed seeds too.
        seed=random.randrange(2**31),
        name=model.name,
    )
    return LiveJob(payload=cloudpickle.dumps(job), arrays=shared, task=model.name)


def _sets(model: Any, request: FitRequest, folder: Path) -> _Sets:
    found = given(
        request.x, request.y, request.sample_weight,
        model=model, where="fit", folder=folder, num_batches=request.steps_per_epoch,
    )  # fmt: skip
    if found.batch_size is not None and request.batch_size is not None:
        raise InputError(
            "fit: a tf.data.Dataset comes in batches already",
            hint="leave batch_size out, or change dataset.batch",
        )
    train, validation = _split(model, request, found.examples, folder)
    batch_size = found.batch_size or request.batch_size or DEFAULT_BATCH_SIZE
    arguments.check_steps(request.steps_per_epoch, len(train), batch_size)
    train = arguments.with_class_weight(train, request.class_weight)
    if validation is not None and (train.weights is None) != (validation.weights is None):
        train, validation = arguments.weighted(train), arguments.weighted(validation)
    return _Sets(
        train=train,
        validation=validation,
        batch_size=min(batch_size, len(train)),
        is_ordered=found.is_ordered,
    )


def _split(
    model: Any, request: FitRequest, examples: Examples, folder: Path
) -> tuple[Examples, Examples | None]:
    if request.validation_data is not None:
        return examples, _validation(model, request, folder)
    if request.validation_split:
        if isinstance(request.x, tf.data.Dataset):
            raise InputError("fit: validation_split needs arrays", hint="give validation_data=dataset")
        return arguments.split(examples, request.validation_split)
    return examples, None


def _validation(model: Any, request: FitRequest, folder: Path) -> Examples:
    data, steps, where = request.validation_data, request.validation_steps, "validation_data"
    if isinstance(data, tf.data.Dataset):
        data = data if steps is None else data.take(steps)
        return given(data, None, None, model=model, where=where, folder=folder, num_batches=None).examples
    if not isinstance(data, tuple | list) or len(data) not in (2, 3):
        raise InputError("fit: expected validation_data=(x, y), (x, y, sample_weight) or a tf.data.Dataset")
    found: Given = given(
        *data, *[None] * (3 - len(data)), model=model, where=where, folder=folder, num_batches=None
    )
    if steps is None:
        return found.examples
    size = request.validation_batch_size or request.batch_size or DEFAULT_BATCH_SIZE
    return found.examples.cut(slice(0, steps * size))
