"""PyTorch's side of the training loop: forward, backward, DistributedDataParallel, optimiser."""

from __future__ import annotations

import contextlib
import gc
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from leptonai.core.errors import Fault, InputError
from leptonai.training.job import TrainJob
from leptonai.training.learner import Batch, Exchange, LearnerState
from leptonai.training.pytorch.losses import build_optimizer, loss_function, metric_function
from leptonai.training.pytorch.tensors import capture, load_model, load_optimizer


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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Before:
    """What a forward pass changes, as it was before the step."""

    buffers: list[torch.Tensor]
    metric_sums: dict[str, float]


class _StepModule(nn.Module):
    """The job's training step as a module, so that DDP can wrap any step function."""

    def __init__(self, model: nn.Module, step: Callable[[Any, Any], torch.Tensor]) -> None:
        super().__init__()
        self.model = model
        self._step = step

    def forward(self, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        return self._step(self.model, batch)


class TorchLearner:
    """Satisfies :class:`leptonai.training.learner.Learner` for any ``torch.nn.Module``.

    Workers hold equal weights: each builds the model after seeding with the job's seed, and DDP copies rank
    0's over the others'. Under data parallelism each forward pass starts from rank 0's buffers (batch
    normalisation's running statistics), while its batch statistics are those of the worker's own share.

    Attributes:
        train_metric_sums: sums of the metrics over the training examples since the loop last cleared them.

    Args:
        announce: called when this worker begins to wait for the others: DDP exchanges during the backward pass.
    """

    def __init__(
        self,
        job: TrainJob,
        exchange: Exchange,
        options: TorchOptions,
        announce: Callable[[], None] = lambda: None,
    ) -> None:
        self._job, self._exchange, self._options, self._announce = job, exchange, options, announce
        self._device = torch.device(options.device)
        self.model = build_model(job).to(self._device)
        if options.memory_format == "channels_last":
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._metrics = {
            name: metric_function(metric) for name, metric in job.evaluate.named(job.loss).items()
        }
        self._loss = None if job.step is not None else loss_function(job.loss)
        self._parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._optimizer = build_optimizer(job, self._parameters)
        self._base_rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        self.train_metric_sums: dict[str, float] = dict.fromkeys(self._metrics if self._loss else (), 0.0)
        # Not Module.compile(): dynamo skips torch.nn's own frames there, and a Sequential stays uncompiled.
        trained = cast(nn.Module, torch.compile(self.model)) if options.compile else self.model
        self._alone = _StepModule(trained, job.step or self._default_step)
        self._module: nn.Module = self._alone
        self._unfinished: _Before | None = None
        self.join()

    def join(self) -> None:
        """Begin to work with the exchange's group; collective, and all end with worker 0's weights."""
        self._module = self._alone
        if self._exchange.num_workers > 1:
            self._module = DistributedDataParallel(
                self._alone,
                device_ids=[self._device.index] if self._device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                # Looking for parameters without a gradient walks the graph every step, so only where there are.
                find_unused_parameters=self._options.some_unused,
            )

    def leave(self) -> None:
        """Let go of the group, and undo what the forward pass of an unfinished step changed."""
        self._module = self._alone
        for parameter in self._parameters:  # a view into DDP's buckets
            parameter.grad = None
        if self._unfinished is not None:
            with torch.no_grad():
                for buffer, value in zip(self.model.buffers(), self._unfinished.buffers, strict=True):
                    buffer.copy_(value)
            self.train_metric_sums.update(self._unfinished.metric_sums)
            self._unfinished = None
        gc.collect()  # DDP is held by cycles, and it holds the group's connections

    @property
    def base_learning_rate(self) -> float:
        return self._base_rates[0]

    @property
    def exchanged_bytes(self) -> int:
        if self._exchange.num_workers == 1:
            return 0
        return sum(parameter.numel() * parameter.element_size() for parameter in self._parameters)

    def step(
        self, micro_batches: Sequence[Batch], *, num_examples: int, lr_factor: float, seed: int
    ) -> float:
        torch.manual_seed(seed)
        self._module.train()
        if self._exchange.num_workers > 1:
            buffers = [buffer.detach().clone() for buffer in self.model.buffers()]
            self._unfinished = _Before(buffers=buffers, metric_sums=dict(self.train_metric_sums))
        for group, rate in zip(self._optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * lr_factor
        self._optimizer.zero_grad(set_to_none=True)
        # With fewer examples than workers some have none to run DDP on; all of them know it from num_examples.
        some_idle = num_examples < self._exchange.num_workers
        total = 0.0
        for index, batch in enumerate(micro_batches):
            last = index == len(micro_batches) - 1
            with contextlib.nullcontext() if last and not some_idle else self._no_sync():
                total += self._backward(batch, num_examples, announce=last)
        if some_idle:
            self._sum_gradients()
        if self._job.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._parameters, self._job.clip_norm, foreach=True)
        self._optimizer.step()
        self._unfinished = None
        return total

    def _backward(self, batch: Batch, num_examples: int, *, announce: bool) -> float:
        with self._autocast():
            loss = self._module(self._to_device(batch))
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            raise InputError(
                "TrainJob: the loss must be one number, the mean over the batch",
                hint="did step or loss forget .mean()?",
            )
        value = float(loss.detach())
        if not math.isfinite(value):
            raise Fault(
                f"the loss is {value}", hint="lower the learning rate, clip_norm=1.0, or look at the data"
            )
        # DDP averages over workers; this weight turns that into the mean over the global batch's examples.
        weight = len(batch[0]) * self._exchange.num_workers / num_examples
        if announce:
            self._announce()
        (loss * weight).backward()
        return value * len(batch[0])

    def _no_sync(self) -> contextlib.AbstractContextManager[None]:
        if isinstance(self._module, DistributedDataParallel):
            return self._module.no_sync()
        return contextlib.nullcontext()

    def _sum_gradients(self) -> None:
        """What DDP would have done, for a step in which some workers have no example."""
        workers = self._exchange.num_workers
        flat = torch.cat(
            [
                (p.grad if p.grad is not None else torch.zeros_like(p)).reshape(-1).float()
                for p in self._parameters
            ]
        )
        values = (flat / workers).cpu().numpy()
        self._exchange.sum(values)
        summed, offset = torch.from_numpy(values).to(self._device), 0
        for parameter in self._parameters:
            part = summed[offset : offset + parameter.numel()].reshape(parameter.shape)
            parameter.grad = part.to(parameter.dtype)
            offset += parameter.numel()

    def evaluate(self, batches: Iterable[Batch]) -> Mapping[str, float]:
        self._share_buffers()
        self._module.eval()
        sums = dict.fromkeys(["loss", *self._metrics], 0.0)
        with torch.inference_mode():
            for batch in batches:
                tensors = self._to_device(batch)
                with self._autocast():
                    self._add_metrics(sums, tensors)
        return sums

    def _add_metrics(self, sums: dict[str, float], tensors: tuple[torch.Tensor, ...]) -> None:
        *inputs, labels = tensors
        if self._loss is None:
            assert self._job.step is not None
            sums["loss"] += float(self._job.step(self.model, tensors)) * len(labels)
        if self._loss is not None or self._metrics:
            outputs = self.model(*inputs)
            if self._loss is not None:
                sums["loss"] += float(self._loss(outputs, labels)) * len(labels)
            for name, metric in self._metrics.items():
                sums[name] += float(metric(outputs, labels).sum())

    def _share_buffers(self) -> None:
        if self._exchange.num_workers > 1:
            for buffer in self.model.buffers():
                values = buffer.detach().cpu().contiguous()
                if values.dtype in (torch.float32, torch.float64, torch.int64):
                    array = np.ascontiguousarray(values.reshape(-1).numpy())
                    self._exchange.broadcast(array)
                    buffer.copy_(torch.from_numpy(array).reshape(buffer.shape))

    def state(self) -> LearnerState:
        for name, parameter in self.model.named_parameters():
            if not torch.isfinite(parameter).all():
                raise Fault(
                    f"the weights {name} are not finite", hint="lower the learning rate, or clip_norm=1.0"
                )
        return capture(self.model, self._optimizer)

    def restore(self, state: LearnerState) -> None:
        load_model(self.model, state.tensors)
        load_optimizer(self._optimizer, state)

    def _default_step(self, model: Any, batch: tuple[torch.Tensor, ...]) -> torch.Tensor:
        assert self._loss is not None
        *inputs, labels = batch
        outputs = model(*inputs)
        with torch.no_grad():
            for name, metric in self._metrics.items():
                self.train_metric_sums[name] += float(metric(outputs, labels).sum())
        return self._loss(outputs, labels)

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        if self._options.precision == "bfloat16":
            return torch.autocast(self._device.type, dtype=torch.bfloat16)
        return contextlib.nullcontext()

    def _to_device(self, batch: Batch) -> tuple[torch.Tensor, ...]:
        return tuple(self._to_tensor(column).to(self._device, non_blocking=True) for column in batch)

    def _to_tensor(self, column: NDArray[Any]) -> torch.Tensor:
        """The column as a tensor in the run's memory format; no copy where it lies that way already."""
        if any(stride < 0 for stride in column.strides):
            column = np.ascontiguousarray(column)
        tensor = torch.from_numpy(column)
        if tensor.ndim == 4 and self._options.memory_format == "channels_last":
            return tensor.contiguous(memory_format=torch.channels_last)
        return tensor.contiguous()


def build_model(job: TrainJob) -> nn.Module:
    """The job's model, built after seeding, so that every worker gets the same weights."""
    torch.manual_seed(job.seed)
    np.random.seed(job.seed % 2**32)
    model = job.model()
    if not isinstance(model, nn.Module):
        raise InputError(
            f"TrainJob: model() returned {type(model).__name__}, expected a torch.nn.Module or a Keras model"
        )
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise InputError(f"TrainJob: {type(model).__name__} has no trainable parameters")
    return model
