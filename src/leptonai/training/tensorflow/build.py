"""A job's Keras model and optimiser, built so that every worker starts with the same weights."""

from __future__ import annotations

from typing import Any, Literal, assert_never

import keras
import numpy as np

from leptonai.core.errors import InputError
from leptonai.training.data.dataset import Data, label_range
from leptonai.training.job import TrainJob
from leptonai.training.learner import Batch
from leptonai.training.optimizers import SGD, Adagrad, Adam, AdamW, Lamb, Optimizer
from leptonai.training.schedules import Constant
from leptonai.training.tensorflow.objective import structured

FixedPrecision = Literal["float32", "bfloat16"]


def build_model(job: TrainJob, *, precision: FixedPrecision, example: Batch | None = None) -> Any:
    """The job's model with its weights made.

    Args:
        precision: ``bfloat16`` computes in it and keeps weights in float32 (Keras's mixed policy).
        example: a batch of one or more prepared examples, to tell a model without ``Input`` its shapes;
            None: taken from the job's data when such a model turns up.

    Raises:
        InputError: the factory returned something else, or the precision cannot be had.
    """
    keras.utils.set_random_seed(job.seed % 2**32)
    before = keras.config.dtype_policy()
    if precision == "bfloat16":
        keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = job.model()
        if not isinstance(model, keras.Model):
            raise InputError(f"TrainJob: model() returned {type(model).__name__}, expected a Keras model")
        if not model.built:
            make_weights(model, example if example is not None else first_examples(job.load_data()))
    finally:
        keras.config.set_dtype_policy(before)
    if not model.trainable_variables:
        raise InputError(f"TrainJob: {type(model).__name__} has no trainable weights")
    _check_precision(model, precision)
    return model


def first_examples(data: Data) -> Batch:
    """One training example, prepared, as a batch."""
    return data.prepared(data.train.first(1).take(np.zeros(1, np.int64)))


def make_weights(model: Any, batch: Batch) -> None:
    """Call a model once so that its layers make their weights."""
    model(structured([as_keras(column[:1]) for column in batch[:-1]]))


def as_keras(column: Any) -> Any:
    """float64 as Keras's own float type, as ``fit`` does; everything else as it is."""
    return column.astype(keras.config.floatx()) if column.dtype == np.float64 else column


def _check_precision(model: Any, precision: FixedPrecision) -> None:
    if precision == "float32":
        return
    others = [
        layer.name for layer in model._flatten_layers() if layer.weights and layer.compute_dtype != precision
    ]
    if others:
        raise InputError(
            f"precision={precision!r} cannot be applied: layer {others[0]!r} was built with its own type",
            hint="build the layers inside the model function and leave their dtype open, or use float32",
        )


def build_optimizer(job: TrainJob, model: Any) -> Any:
    """The job's optimiser with its slots made: its own, or the one the model was compiled with, or Adam.

    Raises:
        InputError: the optimiser is of another framework, or has a schedule beside the job's.
    """
    optimizer = _chosen(job, model)
    if own_schedule(optimizer) and not isinstance(job.schedule, Constant):
        raise InputError(
            "both the job and the compiled optimizer have a learning-rate schedule",
            hint="give only one: TrainJob(schedule=...) or the optimizer's",
        )
    if optimizer.loss_scale_factor is not None or isinstance(optimizer, keras.optimizers.LossScaleOptimizer):
        raise InputError(
            "an optimizer that scales the loss (for float16) is not supported",
            hint="use bfloat16, which needs no scaling",
        )
    optimizer.build(model.trainable_variables)
    return optimizer


def _chosen(job: TrainJob, model: Any) -> Any:
    if job.optimizer is None:
        return model.optimizer if model.compiled and model.optimizer is not None else _from_value(Adam())
    if isinstance(job.optimizer, Optimizer):
        return _from_value(job.optimizer)
    made = job.optimizer(model.trainable_variables)
    if not isinstance(made, keras.optimizers.Optimizer):
        raise InputError(
            f"TrainJob: optimizer() returned {type(made).__name__}, expected a keras.optimizers.Optimizer"
        )
    return made


def own_schedule(optimizer: Any) -> bool:
    """Whether the optimiser computes its learning rate from its own count of steps."""
    return not isinstance(optimizer._learning_rate, keras.Variable)


def _from_value(chosen: Optimizer) -> Any:
    match chosen:
        case SGD():
            # The decay is added to the gradient in the learner: Keras's own is decoupled from it.
            return keras.optimizers.SGD(chosen.lr, momentum=chosen.momentum, nesterov=chosen.nesterov)
        case Adam():
            return keras.optimizers.Adam(chosen.lr, chosen.betas[0], chosen.betas[1], epsilon=chosen.eps)
        case AdamW():
            return keras.optimizers.AdamW(
                chosen.lr, chosen.weight_decay, chosen.betas[0], chosen.betas[1], epsilon=chosen.eps
            )
        case Adagrad():
            # Keras adds epsilon under the root: as a square, it bounds the step as ours does.
            _no_decay(chosen.weight_decay, "Adagrad")
            return keras.optimizers.Adagrad(chosen.lr, chosen.initial_accumulator, epsilon=chosen.eps**2)
        case Lamb():
            _no_decay(chosen.weight_decay, "LAMB")
            return keras.optimizers.Lamb(chosen.lr, chosen.betas[0], chosen.betas[1], epsilon=chosen.eps)
        case _:
            assert_never(chosen)


def _no_decay(weight_decay: float, name: str) -> None:
    if weight_decay:
        raise InputError(
            f"Keras's {name} decays weights outside its scaled step: expected weight_decay=0, "
            f"found {weight_decay}",
            hint="write weight_decay=0, or train with a parameter server",
        )


def check_labels(job: TrainJob, data: Data, model: Any) -> None:
    """Raise InputError when integer labels lie outside the classes that the model's output has.

    Only for losses that read labels as class numbers: ``"cross_entropy"`` or a compiled sparse one.
    """
    if not _reads_class_numbers(job, model):
        return
    shape = output_shape(model)
    num_classes = shape[-1] if shape else None
    if num_classes is None:
        return
    for name, arrays in (("training", data.train), ("evaluation", data.evaluate)):
        span = label_range(arrays) if arrays is not None else None
        if span is not None and (span[0] < 0 or span[1] >= num_classes):
            raise InputError(
                f"labels out of range: the {name} labels run from {span[0]} to {span[1]}, "
                f"the model has {num_classes} outputs",
                hint=f"labels must be whole numbers from 0 to {num_classes - 1}",
            )


def _reads_class_numbers(job: TrainJob, model: Any) -> bool:
    if job.step is None and job.loss is not None:
        return job.loss == "cross_entropy"
    if not model.compiled or model._compile_loss is None:
        return False
    loss = model._compile_loss._user_loss
    name = loss if isinstance(loss, str) else getattr(loss, "name", getattr(loss, "__name__", ""))
    return str(name) == "sparse_categorical_crossentropy"


def output_shape(model: Any) -> tuple[int | None, ...] | None:
    """Shape of the model's single output without the batch dim; None when it is not known before a call."""
    try:
        shape = model.output_shape
    except (AttributeError, ValueError):
        return None
    if not isinstance(shape, tuple) or not all(size is None or isinstance(size, int) for size in shape):
        return None
    return shape[1:]
