"""What a PyTorch job costs: parameters, FLOPs and activations per example, by layer and by operation."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from leptonai.compute.workload import Workload
from leptonai.core.errors import InputError
from leptonai.training.data.dataset import Data, label_range
from leptonai.training.job import TrainJob
from leptonai.training.learner import Batch
from leptonai.training.pytorch.losses import loss_function, num_classes
from leptonai.training.pytorch.trace import LossFunction, trace, trace_real
from leptonai.training.traced import TRACED_SIZES, Trace, per_example


class Profile(NamedTuple):
    """What a job costs, and which trainable parameters its loss did not reach on the examples looked at."""

    workload: Workload
    unused_parameters: tuple[str, ...]


def profile(job: TrainJob, data: Data, model: nn.Module) -> Profile:
    """Trace forward and backward on tensors without values; the model stays as it is.

    A model that looks at values is run on a few real examples instead. FLOPs are those PyTorch counts (matrix
    products, convolutions, attention, recurrences), 2 for a multiply-add. Activations are the outputs of the
    innermost layers; what autograd really keeps is the trace's own ``activation_bytes``.

    Raises:
        InputError: labels lie outside the classes the model's output has.
    """
    batch = sample(data, max(TRACED_SIZES))
    columns = tuple(torch.from_numpy(np.ascontiguousarray(column)) for column in batch)
    loss = _loss_of(job, data)
    try:
        found = trace(model, columns, loss)
    except InputError:  # what is wrong with the job itself comes up again
        found = trace_real(model, columns, loss)
    return Profile(_workload(job, data, model, found, columns), found.unused_parameters)


def sample(data: Data, num_examples: int) -> Batch:
    """The first training examples, prepared as in training but not augmented."""
    return data.prepared(data.train.take(np.arange(num_examples, dtype=np.int64) % len(data.train)))


def _loss_of(job: TrainJob, data: Data) -> LossFunction:
    """The job's loss as a function of (model, columns), which looks once at whether all labels are classes."""
    seen: set[int | None] = set()

    def loss(model: nn.Module, columns: tuple[torch.Tensor, ...]) -> torch.Tensor:
        if job.step is not None:
            found: Any = job.step(model, columns)
        else:
            *inputs, labels = columns
            outputs = model(*inputs)
            classes = num_classes(job.loss, outputs) if not labels.is_floating_point() else None
            if classes not in seen:
                _check_labels(data, classes)
                seen.add(classes)
            found = loss_function(job.loss)(outputs, labels)
        if not isinstance(found, torch.Tensor) or found.numel() != 1:
            raise InputError(
                "TrainJob: the loss must be one number, the mean over the batch",
                hint="did step or loss forget .mean()?",
            )
        return found

    return loss


def _check_labels(data: Data, classes: int | None) -> None:
    for name, arrays in (("training", data.train), ("evaluation", data.evaluate)):
        span = label_range(arrays) if arrays is not None and classes is not None else None
        if span is not None and classes is not None and (span[0] < 0 or span[1] >= classes):
            raise InputError(
                f"labels out of range: the {name} labels run from {span[0]} to {span[1]}, "
                f"the model has {classes} outputs",
                hint=f"labels must be whole numbers from 0 to {classes - 1}",
            )


def _workload(
    job: TrainJob, data: Data, model: nn.Module, found: Trace, columns: tuple[torch.Tensor, ...]
) -> Workload:
    batch = job.global_batch_size
    layers = found.layer_works(batch)
    return Workload(
        num_parameters=found.num_parameters,
        parameter_bytes=found.parameter_bytes,
        flops_per_example=per_example(found.flops(), batch),
        activation_bytes_per_example=round(per_example(found.activation_bytes, batch)),
        num_examples=len(data.train),
        global_batch_size=batch,
        steps_per_epoch=job.steps_per_epoch(len(data.train)),
        total_steps=job.total_steps(len(data.train)),
        layers=layers,
        operations=found.operations,
        num_tensors=found.num_tensors,
        input_bytes_per_example=sum(column[0].numel() * column.element_size() for column in columns),
    )


def measure_core_flops(seconds: float = 0.05) -> float:
    """FLOP/s of one thread on a 384x384 float32 matrix product: the best of what fits in ``seconds``."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        size = 384
        a, b = torch.rand(size, size), torch.rand(size, size)
        best, end = 0.0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            began = time.perf_counter()
            torch.mm(a, b)
            best = max(best, 2.0 * size**3 / (time.perf_counter() - began))
        return best
    finally:
        torch.set_num_threads(threads)
