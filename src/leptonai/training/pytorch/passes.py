"""Forward passes of a job's PyTorch model: its loss and metrics, in the run's precision and memory format."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from leptonai.core.errors import Fault, InputError
from leptonai.training.job import TrainJob
from leptonai.training.learner import Batch
from leptonai.training.pytorch.losses import loss_function, metric_function


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchOptions:
    """How to compute, as decided before the run: speed only, but for ``precision``.

    ``some_unused``: the loss does not reach every trainable parameter.
    """

    precision: Literal["float32", "bfloat16"] = "float32"
    memory_format: Literal["contiguous", "channels_last"] = "contiguous"
    compile: bool = False
    device: str = "cpu"
    some_unused: bool = False


class StepModule(nn.Module):
    """The job's training step as a module, so that DDP can wrap any step function."""

    def __init__(self, model: nn.Module, step: Callable[[Any, Any], torch.Tensor]) -> None:
        super().__init__()
        self.model = model
        self._step = step

    def forward(self, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return self._step(self.model, batch)


class Passes:
    """Calls the model as the job says; holds no weights of its own and never changes any.

    Args:
        job: what to compute.
        options: how; the model already lies on its device.
        model: the job's model.

    Attributes:
        module: gives the mean loss of a batch; what DDP wraps.
        train_metric_sums: sums of the metrics over the training examples since someone last cleared them.
    """

    def __init__(self, job: TrainJob, options: TorchOptions, model: nn.Module) -> None:
        self._job, self._options, self._model = job, options, model
        self._device = torch.device(options.device)
        # Not Module.compile(): dynamo skips torch.nn's own frames there, and a Sequential stays uncompiled.
        trained = cast(nn.Module, torch.compile(model)) if options.compile else model
        self.module = StepModule(trained, job.step or self._mean_loss)
        self._metrics = {
            name: metric_function(metric) for name, metric in job.evaluate.named(job.loss).items()
        }
        self._loss = None if job.step is not None else loss_function(job.loss)
        self._count_metrics = True
        self.train_metric_sums: dict[str, float] = dict.fromkeys(self._metrics if self._loss else (), 0.0)

    def loss(self, batch: Batch, *, module: nn.Module | None = None, secret: bool = False) -> torch.Tensor:
        """The mean loss over a batch, ready for ``backward``.

        Args:
            module: :attr:`module`, wrapped; None: as it is.
            secret: nothing may depend on the loss but the gradient: no metric is counted, none is refused.

        Raises:
            InputError: the job's step or loss does not give one number.
            Fault: the loss is not finite.
        """
        self._count_metrics = not secret
        with self.autocast():
            found: Any = (module or self.module)(self.to_device(batch))
        if not isinstance(found, torch.Tensor) or found.numel() != 1:
            raise InputError(
                "TrainJob: the loss must be one number, the mean over the batch",
                hint="did step or loss forget .mean()?",
            )
        if secret:
            return found
        value = float(found.detach())
        if not math.isfinite(value):
            raise Fault(
                f"the loss is {value}", hint="lower the learning rate, clip_norm=1.0, or look at the data"
            )
        return found

    def _mean_loss(self, model: Any, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
        assert self._loss is not None
        *inputs, labels = tensors
        outputs = model(*inputs)
        if not self._count_metrics:
            return self._loss(outputs, labels)
        with torch.no_grad():
            for name, metric in self._metrics.items():
                self.train_metric_sums[name] += float(metric(outputs, labels).sum())
        return self._loss(outputs, labels)

    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """Sums over all examples of each metric and of ``loss``."""
        self.module.eval()
        sums = dict.fromkeys(["loss", *self._metrics], 0.0)
        with torch.inference_mode():
            for batch in batches:
                tensors = self.to_device(batch)
                with self.autocast():
                    self._add_metrics(sums, tensors)
        return sums

    def _add_metrics(self, sums: dict[str, float], tensors: tuple[torch.Tensor, ...]) -> None:
        *inputs, labels = tensors
        if self._job.step is not None:
            sums["loss"] += float(self._job.step(self._model, tensors)) * len(labels)
        if self._loss is not None or self._metrics:
            outputs = self._model(*inputs)
            if self._loss is not None:
                sums["loss"] += float(self._loss(outputs, labels)) * len(labels)
            for name, metric in self._metrics.items():
                sums[name] += float(metric(outputs, labels).sum())

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context that computes in the run's precision."""
        if self._options.precision == "bfloat16":
            return torch.autocast(self._device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def to_device(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        """The columns as tensors in the run's memory format; no copy where they lie that way already."""
        return tuple(self._to_tensor(column).to(self._device, non_blocking=True) for column in batch)

    def _to_tensor(self, column: NDArray[Any]) -> torch.Tensor:
        if any(stride < 0 for stride in column.strides):
            column = np.ascontiguousarray(column)
        tensor = torch.from_numpy(column)
        if tensor.ndim == 4 and self._options.memory_format == "channels_last":
            return tensor.contiguous(memory_format=torch.channels_last)
        return tensor.contiguous()
