"""A PyTorch learner whose gradient is summed by a method of its own instead of by DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray

from leptonai.core.errors import InputError
from leptonai.training.job import TrainJob
from leptonai.training.learner import Batch, Exchange, LearnerState
from leptonai.training.pytorch.learner import build_model
from leptonai.training.pytorch.losses import build_optimizer
from leptonai.training.pytorch.passes import Passes, TorchOptions
from leptonai.training.pytorch.tensors import capture, check_finite, load_model, load_optimizer
from leptonai.training.step_method import StepMethod
from leptonai.training.stopwatch import Stopwatch

_VALUES = "step_method"


class SummedLearner:
    """Satisfies :class:`leptonai.training.learner.Learner` for runs with a :class:`StepMethod`.

    Neither the loss nor a metric of training examples leaves it: what may be told of them is the method's affair.

    Attributes:
        parameters: the trainable ones.

    Args:
        announce: called when this worker begins to wait for the others.
    """

    def __init__(
        self,
        job: TrainJob,
        exchange: Exchange,
        options: TorchOptions,
        method: StepMethod,
        announce: Callable[[], None] = lambda: None,
    ) -> None:
        self._exchange, self._announce = exchange, announce
        device = torch.device(options.device)
        self.model = build_model(job).to(device)
        if options.memory_format == "channels_last":
            self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._passes = Passes(job, options, self.model)
        self.parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._optimizer = build_optimizer(job, self.parameters)
        self._base_rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        self._sum = method.gradients(self.model)
        self.train_metric_sums: dict[str, float] = {}
        self.stopwatch = Stopwatch()
        self.join()

    def join(self) -> None:
        """Begin to work with the exchange's group: all end with worker 0's weights."""
        if self._exchange.num_workers == 1:
            return
        with torch.no_grad():
            for tensor in (*self.model.parameters(), *self.model.buffers()):
                values = tensor.detach().cpu().contiguous().clone()
                if values.dtype not in (torch.float32, torch.float64, torch.int64):
                    raise InputError(f"a tensor of type {values.dtype} cannot be shared between workers")
                self._exchange.broadcast(values.view(-1).numpy())
                tensor.copy_(values)

    def leave(self) -> None:
        """Forget what was summed in an unfinished step."""
        self._sum.part(leads=False)

    @property
    def base_learning_rate(self) -> float:
        return self._base_rates[0]

    @property
    def exchanged_bytes(self) -> int:
        if self._exchange.num_workers == 1:
            return 0
        return sum(parameter.numel() * parameter.element_size() for parameter in self.parameters)

    @property
    def gradient_norm(self) -> None:
        """Secret, as all that examples alter."""

    def step(
        self, micro_batches: Sequence[Batch], *, num_examples: int, lr_factor: float, seed: int
    ) -> float:
        torch.manual_seed(seed)
        self._passes.module.train()
        for group, rate in zip(self._optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * lr_factor
        for batch in micro_batches:
            self.add(batch)
        part = self._sum.part(leads=self._exchange.rank == 0)
        self.stopwatch.lap("compute")
        if self._exchange.num_workers > 1:
            self._announce()
            self._exchange.sum(part)
            self.stopwatch.lap("exchange")
        self.apply(part)
        self.stopwatch.lap("update")
        return 0.0

    def add(self, batch: Batch) -> None:
        """Take examples into the sum."""
        self._sum.add(self._secret_loss, batch)

    def apply(self, summed: NDArray[Any]) -> None:
        """Take the optimiser's step with what all workers brought."""
        flat_P = self._sum.gradient(summed)
        start = 0
        for parameter in self.parameters:
            end = start + parameter.numel()
            parameter.grad = flat_P[start:end].view(parameter.shape)
            start = end
        self._optimizer.step()

    def loss(self, batch: Batch) -> float:
        """The mean loss of examples as training computes it; no weight changes."""
        with torch.no_grad():
            return float(self._secret_loss(batch))

    def _secret_loss(self, batch: Batch) -> torch.Tensor:
        return self._passes.loss(batch, secret=True)

    def evaluate(self, batches: Iterable[Batch]) -> Mapping[str, float]:
        return self._passes.evaluate(batches)

    def state(self) -> LearnerState:
        check_finite(self.model)
        state = capture(self.model, self._optimizer)
        return LearnerState(tensors=state.tensors, values={**state.values, _VALUES: dict(self._sum.values)})

    def restore(self, state: LearnerState) -> None:
        load_model(self.model, state.tensors)
        load_optimizer(self._optimizer, state)
        self._sum.values.update(state.values.get(_VALUES, {}))
