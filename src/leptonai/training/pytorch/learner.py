"""PyTorch's side of the training loop: forward, backward, DistributedDataParallel, optimiser."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from leptonai.core.errors import InputError
from leptonai.training.job import TrainJob
from leptonai.training.learner import Batch, Exchange, LearnerState
from leptonai.training.pytorch.losses import build_optimizer
from leptonai.training.pytorch.passes import Passes, TorchOptions
from leptonai.training.pytorch.tensors import capture, check_finite, load_model, load_optimizer
from leptonai.training.stopwatch import Stopwatch


@dataclass(frozen=True, slots=True, kw_only=True)
class _Before:
    """What a forward pass changes, as it was before the step."""

    buffers: list[torch.Tensor]
    metric_sums: dict[str, float]


class TorchLearner:
    """Satisfies :class:`leptonai.training.learner.Learner` for any ``torch.nn.Module``.

    Workers hold equal weights: each builds the model after seeding with the job's seed, and DDP copies rank
    0's over the others'. Under data parallelism each forward pass starts from rank 0's buffers (batch
    normalisation's running statistics), while its batch statistics are those of the worker's own share.

    Attributes:
        train_metric_sums: sums of the metrics over the training examples since the loop last cleared them.
        stopwatch: where the time of steps goes; ``exchange`` is what the backward pass does not hide.

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
        self._passes = Passes(job, options, self.model)
        self._parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._optimizer = build_optimizer(job, self._parameters)
        self._base_rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        self._module: nn.Module = self._passes.module
        self._unfinished: _Before | None = None
        self.stopwatch = Stopwatch()
        self._computed = 0.0
        self._clipped_norm: torch.Tensor | None = None
        for parameter in self._parameters:
            parameter.register_post_accumulate_grad_hook(self._note_gradient)
        self.join()

    def join(self) -> None:
        """Begin to work with the exchange's group; collective, and all end with worker 0's weights."""
        self._module = self._passes.module
        if self._exchange.num_workers > 1:
            self._module = DistributedDataParallel(
                self._passes.module,
                device_ids=[self._device.index] if self._device.type == "cuda" else None,
                gradient_as_bucket_view=True,
                # Looking for parameters without a gradient walks the graph every step, so only where there are.
                find_unused_parameters=self._options.some_unused,
            )

    def leave(self) -> None:
        """Let go of the group, and undo what the forward pass of an unfinished step changed."""
        self._module = self._passes.module
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
    def train_metric_sums(self) -> dict[str, float]:
        return self._passes.train_metric_sums

    @property
    def base_learning_rate(self) -> float:
        return self._base_rates[0]

    @property
    def exchanged_bytes(self) -> int:
        if self._exchange.num_workers == 1:
            return 0
        return sum(parameter.numel() * parameter.element_size() for parameter in self._parameters)

    @property
    def gradient_norm(self) -> float | None:
        if self._clipped_norm is not None:
            return float(self._clipped_norm)
        gradients = [parameter.grad for parameter in self._parameters if parameter.grad is not None]
        return float(nn.utils.get_total_norm(gradients, foreach=True)) if gradients else None

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
        alone = self._exchange.num_workers == 1
        self.stopwatch.lap("compute", until=None if alone or some_idle else self._computed)
        if some_idle:
            self._sum_gradients()
        if not alone:
            self.stopwatch.lap("exchange")
        if self._job.clip_norm is not None:
            self._clipped_norm = nn.utils.clip_grad_norm_(self._parameters, self._job.clip_norm, foreach=True)
        self._optimizer.step()
        self._unfinished = None
        self.stopwatch.lap("update")
        return total

    def _note_gradient(self, _parameter: torch.Tensor) -> None:
        """When the last gradient is there, this worker has computed; DDP then waits for the others."""
        self._computed = self.stopwatch.now()

    def _backward(self, batch: Batch, num_examples: int, *, announce: bool) -> float:
        loss = self._passes.loss(batch, module=self._module)
        # DDP averages over workers; this weight turns that into the mean over the global batch's examples.
        weight = len(batch[0]) * self._exchange.num_workers / num_examples
        if announce:
            self._announce()
        (loss * weight).backward()
        return float(loss.detach()) * len(batch[0])

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
        return self._passes.evaluate(batches)

    def _share_buffers(self) -> None:
        if self._exchange.num_workers > 1:
            for buffer in self.model.buffers():
                values = buffer.detach().cpu().contiguous()
                if values.dtype in (torch.float32, torch.float64, torch.int64):
                    array = np.ascontiguousarray(values.reshape(-1).numpy())
                    self._exchange.broadcast(array)
                    buffer.copy_(torch.from_numpy(array).reshape(buffer.shape))

    def state(self) -> LearnerState:
        check_finite(self.model)
        return capture(self.model, self._optimizer)

    def restore(self, state: LearnerState) -> None:
        load_model(self.model, state.tensors)
        load_optimizer(self._optimizer, state)


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
