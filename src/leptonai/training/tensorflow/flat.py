"""Keras's side of the parameter server: variables copied in and out of memory the learner is given."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

from leptonai.core.errors import Fault, InputError
from leptonai.training.job import TrainJob
from leptonai.training.learner import Batch, LearnerState, shares
from leptonai.training.optimizers import SGD
from leptonai.training.parameter_server.flat import TensorSpec
from leptonai.training.tensorflow import tensors
from leptonai.training.tensorflow.build import as_keras, build_model, build_optimizer, own_schedule
from leptonai.training.tensorflow.embedding import tables_of
from leptonai.training.tensorflow.learner import Tuning
from leptonai.training.tensorflow.objective import WeightedStep, objective_for

_KEPT = {"float32": "F32", "bfloat16": "BF16"}


class KerasFlatLearner:
    """Satisfies :class:`leptonai.training.parameter_server.flat.FlatLearner` for any Keras model on TensorFlow.

    TensorFlow keeps variables in memory of its own, so parameters are copied in by :meth:`refresh` and out
    by :meth:`local_step`; gradients come out of one compiled function. Moving statistics (such as batch
    normalisation's) stay this worker's own. Random layers start from ``seed`` in each call.

    ``job.clip_norm`` acts in :meth:`local_step`; what :meth:`gradient` writes is not clipped. Optimiser
    tensors in a state handed to :meth:`restore` are loaded into the local optimiser: leave them out in the
    gradient family, where it would only take memory.

    Args:
        job: what to train.
        tuning: precision and compilation.
        example: prepared examples for a model without ``Input``; None: the first of the job's data.

    Attributes:
        model: the job's model.
        train_metric_sums: sums of the metrics over the training examples since the loop last cleared them.

    Raises:
        InputError: the model has nothing to train, or variables in a type that float32 does not hold.
    """

    def __init__(self, job: TrainJob, tuning: Tuning, *, example: Batch | None = None) -> None:
        self._job, self._tuning = job, tuning
        self.model = build_model(job, precision=tuning.precision, example=example)
        self._objective = objective_for(job, self.model)
        self._variables = list(self.model.trainable_variables)
        self._tensors = _specs(self.model)
        self._embeddings = tables_of(self.model)
        self._seeds = _seed_variables(self.model)
        self._optimizer: Any = None
        self._parameters: list[NDArray[np.float32]] = []
        self._gradients: list[NDArray[np.float32]] = []
        self._bound = False
        self._compiled: dict[Any, Any] = {}
        self._metric_names = list(job.evaluate.named(job.loss))
        known = job.step is None or isinstance(job.step, WeightedStep)
        self.train_metric_sums: dict[str, float] = dict.fromkeys(self._metric_names if known else [], 0.0)

    @property
    def tensors(self) -> Sequence[TensorSpec]:
        return self._tensors

    def initial(self) -> Sequence[NDArray[np.float32]]:
        return [np.asarray(each.numpy(), np.float32).reshape(-1) for each in self._variables]

    def bind(
        self, parameters: Sequence[NDArray[np.float32]], gradients: Sequence[NDArray[np.float32]]
    ) -> None:
        for spec, *arrays in zip(self._tensors, parameters, gradients, strict=True):
            for array in arrays:
                assert array.dtype == np.float32, spec.name
                assert array.shape == (spec.num_elements,), spec.name
        self._parameters, self._gradients, self._bound = list(parameters), list(gradients), True
        self.refresh()

    def refresh(self) -> None:
        for variable, values in zip(self._variables, self._parameters, strict=self._bound):
            variable.assign(values.reshape(variable.shape))

    def gradient(self, batch: Batch, *, num_examples: int, seed: int) -> float:
        assert self._bound, "bind parameters first"
        total, grads = self._backward(batch, num_examples, seed)
        for index, place in enumerate(self._gradients):
            place[:] = np.asarray(memoryview(grads[index])).reshape(-1) if grads else 0.0
        return total

    def _backward(self, batch: Batch, num_examples: int, seed: int) -> tuple[float, list[Any]]:
        """The loss's sum and the gradients, over as many parts as the job accumulates; none for no examples."""
        self._reseed(seed)
        total, summed = 0.0, list[Any]()
        for part in _parts(batch, self._job.accumulate):
            measured, grads = self._run(self._weighted, part, np.float32(len(part[0]) / num_examples))
            total += self._count(measured, len(part[0]))
            summed = [a + b for a, b in zip(summed, grads, strict=True)] if summed else grads
        return total, summed

    def local_step(self, batch: Batch, *, lr_factor: float, seed: int) -> float:
        assert self._bound, "bind parameters first"
        self._local_optimizer()
        total, grads = self._backward(batch, max(1, len(batch[0])), seed)
        if grads:
            self._apply(grads, np.float32(self._base_rate * lr_factor))
            self._publish()
        return total

    def _local_optimizer(self) -> Any:
        """The job's own optimiser, made when first needed: in the gradient family its state is the servers'."""
        if self._optimizer is None:
            self._optimizer = build_optimizer(self._job, self.model)
            self._own_schedule = own_schedule(self._optimizer)
            self._base_rate = float(self._optimizer.learning_rate)
            self._decay = self._job.optimizer.weight_decay if isinstance(self._job.optimizer, SGD) else 0.0
        return self._optimizer

    def _publish(self) -> None:
        for variable, values in zip(self._variables, self._parameters, strict=self._bound):
            values[:] = np.asarray(variable.numpy(), np.float32).reshape(-1)

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

    # -- compiled functions -----------------------------------------------------------------------

    def _run(self, function: Callable[..., Any], batch: Batch, *numbers: np.float32) -> Any:
        """Call ``function`` compiled for columns of these types and shapes, with any number of examples."""
        columns = tuple(as_keras(column) for column in batch)
        key = (function.__name__, *((column.dtype, column.shape[1:]) for column in columns))
        if key not in self._compiled:
            specs = tuple(tf.TensorSpec((None, *column.shape[1:]), column.dtype) for column in columns)
            self._compiled[key] = tf.function(
                function,
                input_signature=[specs, *(tf.TensorSpec((), tf.float32) for _ in numbers)],
                autograph=False,
                jit_compile=self._tuning.compile or None,
            )
        try:
            return self._compiled[key](columns, *numbers)
        except tf.errors.OpError as error:
            # TensorFlow makes an error of its own of what was raised within; ours says what to do.
            for embedding in self._embeddings:
                if embedding.problem:
                    raise embedding.problem.pop() from error
            raise

    def _measure(self, columns: Any, *, training: bool) -> tuple[Any, Any]:
        loss, sums = self._objective(self.model, columns, training=training)
        return loss, tf.stack([loss, *sums.values()])

    def _weighted(self, columns: Any, share: Any) -> tuple[Any, list[Any]]:
        """Loss and metrics, and each gradient times this part's share of the whole step."""
        with tf.GradientTape() as tape:
            loss, measured = self._measure(columns, training=True)
        if self._embeddings:  # what their rows get passes through the tape alone, so the share must, too
            grads = tape.gradient(loss, self._variables, output_gradients=tf.cast(share, loss.dtype))
            return measured, [_dense(grad, each) for grad, each in zip(grads, self._variables, strict=True)]
        grads = tape.gradient(loss, self._variables)
        return measured, [
            _dense(grad, each) * share for grad, each in zip(grads, self._variables, strict=True)
        ]

    def _apply(self, grads: list[Any], rate: np.float32) -> None:
        if "update" not in self._compiled:
            self._compiled["update"] = tf.function(
                self._update,
                input_signature=[
                    [tf.TensorSpec(each.shape, tf.float32) for each in self._variables],
                    tf.TensorSpec((), tf.float32),
                ],
                autograph=False,
                jit_compile=self._tuning.compile or None,
            )
        self._compiled["update"](grads, rate)

    def _update(self, grads: list[Any], rate: Any) -> None:
        if self._job.clip_norm is not None:
            grads, _ = tf.clip_by_global_norm(grads, self._job.clip_norm)
        if self._decay:
            grads = [grad + self._decay * each for grad, each in zip(grads, self._variables, strict=True)]
        if not self._own_schedule:
            self._optimizer.learning_rate.assign(rate)
        self._optimizer.apply(grads, self._variables)

    def _evaluation(self, columns: Any) -> Any:
        return self._measure(columns, training=False)[1]

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
        found = tensors.read(*self._named(with_optimizer=self._optimizer is not None))
        return LearnerState(tensors=found, values={"framework": "tensorflow"})

    def restore(self, state: LearnerState) -> None:
        with_optimizer = any(name.startswith("optimizer/") for name in state.tensors)
        if with_optimizer:
            self._local_optimizer()
        tensors.write(*self._named(with_optimizer=with_optimizer), state.tensors)
        self._publish()

    def _named(self, *, with_optimizer: bool) -> tuple[list[str], list[Any]]:
        """Names and variables that make up the state."""
        names, variables = tensors.model_names(self.model), list(self.model.weights)
        if with_optimizer:
            names += tensors.optimizer_names(self._optimizer, self.model)
            variables += self._optimizer.variables
        return names, variables

    def _reseed(self, seed: int) -> None:
        for place, variable in enumerate(self._seeds):
            variable.assign(np.random.SeedSequence([seed, place]).generate_state(2).astype(variable.dtype))


def _specs(model: Any) -> tuple[TensorSpec, ...]:
    names = {id(each): name for name, each in zip(tensors.model_names(model), model.weights, strict=True)}
    return tuple(_spec(names[id(each)].removeprefix("model/"), each) for each in model.trainable_variables)


def _spec(name: str, variable: Any) -> TensorSpec:
    if variable.dtype not in _KEPT:
        raise InputError(
            f"the variable {name} is {variable.dtype}, the parameter server keeps float32",
            hint="build the model in float32 or bfloat16",
        )
    return TensorSpec(name=name, shape=tuple(variable.shape), dtype=_KEPT[variable.dtype])


def _dense(grad: Any, variable: Any) -> Any:
    """A gradient as a float32 tensor: zeros where the loss does not depend on the variable."""
    if grad is None:
        return tf.zeros(variable.shape)
    return tf.cast(tf.convert_to_tensor(grad), tf.float32)


def _seed_variables(model: Any) -> list[Any]:
    weights = {id(variable) for variable in model.weights}
    return [variable for variable in model.variables if id(variable) not in weights]


def _parts(batch: Batch, count: int) -> list[Batch]:
    length = len(batch[0])
    cuts = shares(length, min(count, length)) if length else []
    return [tuple(column[cut] for column in batch) for cut in cuts]
