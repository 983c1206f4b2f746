"""One worker's Keras model and optimiser: a compiled local step, its gradient summed over workers.

Letters: P all trainable numbers of the model, M all moving statistics (such as batch normalisation's).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from leptonai.core.errors import Fault
from leptonai.training.job import TrainJob
from leptonai.training.learner import Batch, Exchange, LearnerState
from leptonai.training.optimizers import SGD
from leptonai.training.step_method import GradientSum, StepMethod
from leptonai.training.stopwatch import Stopwatch
from leptonai.training.tensorflow import tensors
from leptonai.training.tensorflow.build import (
    FixedPrecision,
    as_keras,
    build_model,
    build_optimizer,
    own_schedule,
)
from leptonai.training.tensorflow.objective import WeightedStep, objective_for
from leptonai.training.tensorflow.runtime import configure

__all__ = ["KerasLearner", "Tuning", "configure"]


class Tuning(Protocol):
    """How to compute: ``precision`` alters results, ``compile`` (XLA) only speed and rounding."""

    @property
    def precision(self) -> FixedPrecision: ...

    @property
    def compile(self) -> bool: ...


class KerasLearner:
    """A :class:`~leptonai.training.learner.Learner` for any Keras model on TensorFlow.

    Every worker computes the gradient of its share in one compiled function, as one flat tensor; the sum over
    workers, weighted by examples, is the gradient of the mean over the global batch. Moving statistics are
    averaged by examples in the same sum, so the state is equal on all workers after every step. Random layers
    start from ``seed`` in each step and keep no state between steps (TensorFlow's own stateful random
    functions, outside Keras's seed generators, are not covered).

    Args:
        job: what to train.
        exchange: the link to the other workers.
        tuning: precision and compilation.
        example: prepared examples for a model without ``Input``; None: the first of the job's data.
        method: sums gradients in a way of its own, and nothing is told of training examples; None: the usual way.

    Attributes:
        train_metric_sums: sums of the metrics over the training examples since the loop last cleared them.
        stopwatch: where the time of steps goes; a single worker's update is part of its compiled step.
    """

    def __init__(
        self,
        job: TrainJob,
        exchange: Exchange,
        *,
        tuning: Tuning,
        example: Batch | None = None,
        method: StepMethod | None = None,
    ) -> None:
        self._job, self._exchange, self._tuning = job, exchange, tuning
        self.model = build_model(job, precision=tuning.precision, example=example)
        self.optimizer = build_optimizer(job, self.model)
        self._objective = objective_for(job, self.model)
        self._own_schedule = own_schedule(self.optimizer)
        self._base_rate = float(self.optimizer.learning_rate)
        self._decay = job.optimizer.weight_decay if isinstance(job.optimizer, SGD) else 0.0
        self._variables = self.model.trainable_variables
        self._moving = _moving_variables(self.model)
        self._seeds = _seed_variables(self.model)
        self._num_P = sum(_sizes(self._variables))
        self._shared_PM = np.zeros(self._num_P + sum(_sizes(self._moving)), np.float32)
        self._compiled: dict[Any, Any] = {}
        self._metric_names = list(job.evaluate.named(job.loss))
        self._sum = None if method is None else method.gradients(self.model)
        known = method is None and (job.step is None or isinstance(job.step, WeightedStep))
        self.train_metric_sums: dict[str, float] = dict.fromkeys(self._metric_names if known else [], 0.0)
        self._unfinished: tuple[list[NDArray[Any]], dict[str, float]] | None = None
        self.stopwatch = Stopwatch()
        self._gradient_kept = False
        self.join()

    def join(self) -> None:
        """Begin to work with the exchange's group; collective, and all end with worker 0's weights."""
        self._broadcast_start()

    def leave(self) -> None:
        """Undo what the forward pass of an unfinished step changed; the group's exchange is not used again."""
        if self._unfinished is not None:
            moving, sums = self._unfinished
            for variable, value in zip(self._moving, moving, strict=True):
                variable.assign(value)
            self.train_metric_sums.update(sums)
            self._unfinished = None
        if self._sum is not None:
            self._sum.part(leads=False)

    @property
    def base_learning_rate(self) -> float:
        return self._base_rate

    @property
    def exchanged_bytes(self) -> int:
        return 0 if self._exchange.num_workers == 1 else self._shared_PM.nbytes

    @property
    def gradient_norm(self) -> float | None:
        if self._sum is not None or not self._gradient_kept:
            return None
        return float(np.linalg.norm(self._shared_PM[: self._num_P]))

    def step(
        self, micro_batches: Sequence[Batch], *, num_examples: int, lr_factor: float, seed: int
    ) -> float:
        self._reseed(seed)
        if self._sum is not None:
            return self._summed_step(self._sum, micro_batches, lr_factor)
        rate = np.float32(self._base_rate * lr_factor)
        if self._exchange.num_workers == 1 and len(micro_batches) == 1:
            loss = self._count(self._run(self._fused, micro_batches[0], rate), len(micro_batches[0][0]))
            self.stopwatch.lap("compute")
            return loss
        self._unfinished = [variable.numpy() for variable in self._moving], dict(self.train_metric_sums)
        total, share, grads_P = 0.0, 0.0, None
        for batch in micro_batches:
            part = np.float32(len(batch[0]) / num_examples)
            measured, weighted_P = self._run(self._gradient, batch, part)
            total += self._count(measured, len(batch[0]))
            share += float(part)
            grads_P = weighted_P if grads_P is None else grads_P + weighted_P
        self.stopwatch.lap("compute")
        self._sum_over_workers(grads_P, share)
        self._gradient_kept = True
        self.stopwatch.lap("exchange")
        self._apply(self._shared_PM, rate)
        self._unfinished = None
        self.stopwatch.lap("update")
        return total

    def _summed_step(self, sums: GradientSum, micro_batches: Sequence[Batch], lr_factor: float) -> float:
        for batch in micro_batches:
            sums.add(self._secret_loss, tuple(as_keras(column) for column in batch))
        part = sums.part(leads=self._exchange.rank == 0)
        self.stopwatch.lap("compute")
        self._exchange.sum(part)
        self.stopwatch.lap("exchange")
        self._shared_PM[:] = sums.gradient(part)
        self._apply(self._shared_PM, np.float32(self._base_rate * lr_factor))
        self.stopwatch.lap("update")
        return 0.0

    def _secret_loss(self, columns: Any) -> Any:
        return self._measure(columns, training=True)[0]

    def _count(self, measured: Any, num_examples: int) -> float:
        """Check the mean loss, keep the metrics' sums, and return the loss's sum."""
        loss, *sums = measured.numpy().tolist()
        if not math.isfinite(loss):
            raise Fault(
                f"the loss is {loss}", hint="lower the learning rate, clip_norm=1.0, or look at the data"
            )
        for name, value in zip(self.train_metric_sums, sums, strict=True):
            self.train_metric_sums[name] += value
        return float(loss) * num_examples

    def _sum_over_workers(self, grads_P: Any, share: float) -> None:
        """Fill the shared array with this worker's part and replace it by the sum of all parts."""
        shared_PM, start = self._shared_PM, self._num_P
        shared_PM[:start] = 0.0 if grads_P is None else np.asarray(memoryview(grads_P))
        for variable, size in zip(self._moving, _sizes(self._moving), strict=True):
            shared_PM[start : start + size] = share * np.asarray(variable.numpy(), np.float32).reshape(-1)
            start += size
        self._exchange.sum(shared_PM)

    # -- compiled functions -----------------------------------------------------------------------

    def _run(self, function: Callable[..., Any], batch: Batch, *numbers: np.float32) -> Any:
        """Call ``function`` compiled for columns of these types and shapes, with any number of examples."""
        columns = tuple(as_keras(column) for column in batch)
        key = (function.__name__, *((column.dtype, column.shape[1:]) for column in columns))
        if key not in self._compiled:
            specs = tuple(tf.TensorSpec((None, *column.shape[1:]), column.dtype) for column in columns)
            scalars = [tf.TensorSpec((), tf.float32) for _ in numbers]
            self._compiled[key] = tf.function(
                function,
                input_signature=[specs, *scalars],
                autograph=False,
                jit_compile=self._tuning.compile or None,
            )
        return self._compiled[key](columns, *numbers)

    def _measure(self, columns: Any, *, training: bool) -> tuple[Any, Any]:
        loss, sums = self._objective(self.model, columns, training=training)
        return loss, tf.stack([loss, *sums.values()])

    def _gradient(self, columns: Any, share: Any) -> tuple[Any, Any]:
        """Loss and metrics, and the flat gradient times this share of the global batch."""
        with tf.GradientTape() as tape:
            loss, measured = self._measure(columns, training=True)
        return measured, self._flat(tape.gradient(loss, self._variables)) * share

    def _fused(self, columns: Any, rate: Any) -> Any:
        """A whole step of a single worker; an infinite loss changes no weight."""
        with tf.GradientTape() as tape:
            loss, measured = self._measure(columns, training=True)
        grads = [
            _dense(grad, variable)
            for grad, variable in zip(tape.gradient(loss, self._variables), self._variables, strict=True)
        ]
        tf.cond(tf.math.is_finite(loss), lambda: self._update(grads, rate), lambda: tf.constant(0))
        return measured

    def _evaluation(self, columns: Any) -> Any:
        return self._measure(columns, training=False)[1]

    def _flat(self, grads: list[Any]) -> Any:
        flat = [
            tf.reshape(_dense(grad, variable), [-1])
            for grad, variable in zip(grads, self._variables, strict=True)
        ]
        return tf.concat(flat, axis=0)

    def _apply(self, shared_PM: NDArray[np.float32], rate: np.float32) -> None:
        if "apply" not in self._compiled:
            signature = [tf.TensorSpec(shared_PM.shape, tf.float32), tf.TensorSpec((), tf.float32)]
            self._compiled["apply"] = tf.function(
                self._take_over,
                input_signature=signature,
                autograph=False,
                jit_compile=self._tuning.compile or None,
            )
        self._compiled["apply"](shared_PM, rate)

    def _take_over(self, shared_PM: Any, rate: Any) -> None:
        targets = [*self._variables, *self._moving]
        parts = [
            tf.reshape(part, variable.shape)
            for part, variable in zip(tf.split(shared_PM, _sizes(targets)), targets, strict=True)
        ]
        for variable, value in zip(self._moving, parts[len(self._variables) :], strict=True):
            variable.assign(tf.cast(value, variable.dtype))
        self._update(parts[: len(self._variables)], rate)

    def _update(self, grads: list[Any], rate: Any) -> Any:
        if self._job.clip_norm is not None:
            grads, _ = tf.clip_by_global_norm(grads, self._job.clip_norm)
        if self._decay:
            grads = [
                grad + self._decay * variable for grad, variable in zip(grads, self._variables, strict=True)
            ]
        if not self._own_schedule:
            self.optimizer.learning_rate.assign(rate)
        self.optimizer.apply(grads, self._variables)
        return tf.constant(0)

    # -- evaluation, state ------------------------------------------------------------------------

    def evaluate(self, batches: Iterable[Batch]) -> Mapping[str, float]:
        totals = np.zeros(1 + len(self._metric_names), np.float64)
        for batch in batches:
            measured = self._run(self._evaluation, batch).numpy().astype(np.float64)
            measured[0] *= len(batch[0])
            totals += measured
        return dict(zip(["loss", *self._metric_names], totals.tolist(), strict=True))

    def state(self) -> LearnerState:
        for variable in self._variables:
            if not np.isfinite(np.asarray(variable.numpy(), np.float32)).all():
                hint = "lower the learning rate, or clip_norm=1.0"
                raise Fault(f"the weights {variable.path} are not finite", hint=hint)
        model = tensors.read(tensors.model_names(self.model), self.model.weights)
        slots = tensors.read(tensors.optimizer_names(self.optimizer, self.model), self.optimizer.variables)
        values: dict[str, Any] = {"framework": "tensorflow"}
        if self._sum is not None:
            values["step_method"] = dict(self._sum.values)
        return LearnerState(tensors={**model, **slots}, values=values)

    def restore(self, state: LearnerState) -> None:
        names = tensors.model_names(self.model) + tensors.optimizer_names(self.optimizer, self.model)
        tensors.write(names, [*self.model.weights, *self.optimizer.variables], state.tensors)
        if self._sum is not None:
            self._sum.values.update(state.values.get("step_method", {}))

    def _reseed(self, seed: int) -> None:
        for place, variable in enumerate(self._seeds):
            variable.assign(np.random.SeedSequence([seed, place]).generate_state(2).astype(variable.dtype))

    def _broadcast_start(self) -> None:
        """Take rank 0's weights, in case the model function drew numbers of its own."""
        if self._exchange.num_workers == 1:
            return
        for variable in self.model.weights:
            if variable.dtype == "float32":
                value = np.ascontiguousarray(variable.numpy()).reshape(-1)
                self._exchange.broadcast(value)
                variable.assign(value.reshape(variable.shape))


def _dense(grad: Any, variable: Any) -> Any:
    """A gradient as a float32 tensor: zeros where the loss does not depend on the variable."""
    if grad is None:
        return tf.zeros(variable.shape)
    return tf.cast(tf.convert_to_tensor(grad), tf.float32)


def _sizes(variables: Iterable[Any]) -> list[int]:
    return [math.prod(variable.shape) for variable in variables]


def _moving_variables(model: Any) -> list[Any]:
    """Statistics that training itself moves; frozen weights are not among them."""
    return [
        variable
        for layer in model._flatten_layers()
        if layer.trainable
        for variable in layer._non_trainable_variables
        if variable.dtype in ("float32", "float16", "bfloat16", "float64")
    ]


def _seed_variables(model: Any) -> list[Any]:
    weights = {id(variable) for variable in model.weights}
    return [variable for variable in model.variables if id(variable) not in weights]
