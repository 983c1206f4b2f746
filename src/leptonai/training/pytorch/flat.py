"""PyTorch's side of the parameter server: a model whose parameters lie in memory it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from leptonai.core.errors import InputError
from leptonai.training.job import TrainJob
from leptonai.training.learner import Batch, LearnerState, RawTensor, shares
from leptonai.training.parameter_server.flat import TensorSpec
from leptonai.training.pytorch.losses import build_optimizer
from leptonai.training.pytorch.passes import Passes, TorchOptions
from leptonai.training.pytorch.tensors import capture, check_finite, load_model, load_optimizer, to_raw

_KEPT = {torch.float32: "F32", torch.bfloat16: "BF16"}


class TorchFlatLearner:
    """Satisfies :class:`leptonai.training.parameter_server.flat.FlatLearner` for any ``torch.nn.Module``.

    A float32 parameter on the CPU *is* its piece of the bound memory: nothing is copied to read it, and an
    update elsewhere is seen at once. Parameters in bfloat16 or on a GPU are the worker's own, copied in by
    :meth:`refresh`. Each gradient is copied to its place the moment the backward pass has summed it, and its
    tensor freed: presetting ``.grad`` to a view costs more, since zeroing and adding touch memory three times.

    ``job.clip_norm`` acts in :meth:`local_step`; what :meth:`gradient` writes is not clipped. Optimiser
    tensors in a state handed to :meth:`restore` are loaded into the local optimiser: leave them out in the
    gradient family, where it would only take memory.

    Args:
        job: what to train.
        options: how to compute.

    Attributes:
        model: the job's model.
        train_metric_sums: sums of the metrics over the training examples since the loop last cleared them.

    Raises:
        InputError: the model has nothing to train, or parameters in a type that float32 does not hold.
    """

    def __init__(self, job: TrainJob, options: TorchOptions) -> None:
        self._job = job
        # Parameters stay contiguous whatever the memory format: flat memory has one order. Inputs follow it.
        self.model = _build(job).to(torch.device(options.device))
        trained = {name: each for name, each in self.model.named_parameters() if each.requires_grad}
        self._parameters = list(trained.values())
        self._tensors = tuple(_spec(name, parameter) for name, parameter in trained.items())
        self._passes = Passes(job, options, self.model)
        self._optimizer: torch.optim.Optimizer | None = None
        self._base_rates: list[float] = []
        self._masters: list[nn.Parameter] = []  # what the local optimiser works on, one a parameter
        self._unread: LearnerState | None = None  # an optimiser's state that waits for parameters to be bound
        self._flat_parameters: list[torch.Tensor] = []
        self._flat_gradients: list[torch.Tensor] = []
        self._bound = False
        self._reached: set[int] = set()
        self._collecting = False

    @property
    def tensors(self) -> Sequence[TensorSpec]:
        return self._tensors

    @property
    def train_metric_sums(self) -> dict[str, float]:
        return self._passes.train_metric_sums

    def initial(self) -> Sequence[NDArray[np.float32]]:
        return [each.detach().float().cpu().reshape(-1).numpy() for each in self._parameters]

    def bind(
        self, parameters: Sequence[NDArray[np.float32]], gradients: Sequence[NDArray[np.float32]]
    ) -> None:
        """May be called again, with other memory: a run that changes its mode may move."""
        self._flat_parameters = [
            _shaped(array, spec) for array, spec in zip(parameters, self._tensors, strict=True)
        ]
        self._flat_gradients = [
            _shaped(array, spec) for array, spec in zip(gradients, self._tensors, strict=True)
        ]
        for index, (parameter, flat) in enumerate(zip(self._parameters, self._flat_parameters, strict=True)):
            if _shares_memory(parameter):
                parameter.data = flat
            if not self._bound:
                parameter.register_post_accumulate_grad_hook(self._take(index))
            if self._masters and self._masters[index] is not parameter:
                self._masters[index].data = flat
        self._bound = True
        self.refresh()
        self._restore_optimizer()

    def refresh(self) -> None:
        with torch.no_grad():
            for parameter, flat in self._own():
                parameter.copy_(flat)

    def _own(self) -> Iterable[tuple[nn.Parameter, torch.Tensor]]:
        """Parameters with memory of their own, and where their values are shared."""
        pairs = zip(self._parameters, self._flat_parameters, strict=True) if self._bound else ()
        return ((parameter, flat) for parameter, flat in pairs if not _shares_memory(parameter))

    def gradient(self, batch: Batch, *, num_examples: int, seed: int) -> float:
        assert self._bound, "bind parameters first"
        self._reached.clear()
        self._collecting = True
        try:
            total = self._backward(batch, num_examples, seed)
        finally:
            self._collecting = False
        for index, flat in enumerate(self._flat_gradients):
            if index not in self._reached:
                flat.zero_()
        return total

    def _backward(self, batch: Batch, num_examples: int, seed: int) -> float:
        """Backward passes over the batch in as many parts as the job accumulates; the loss's sum."""
        torch.manual_seed(seed)
        self._passes.module.train()
        total = 0.0
        for part in _parts(batch, self._job.accumulate):
            loss = self._passes.loss(part)
            if loss.requires_grad:
                (loss * (len(part[0]) / num_examples)).backward()
            total += float(loss.detach()) * len(part[0])
        return total

    def _take(self, index: int) -> Callable[[torch.Tensor], None]:
        """A hook that moves a finished gradient to its place; it may run more than once a step, so later adds."""

        def take(parameter: torch.Tensor) -> None:
            if not self._collecting or parameter.grad is None:
                return
            place = self._flat_gradients[index]
            found = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
            if index in self._reached:
                place.add_(found.to(place.device))
            else:
                place.copy_(found)
                self._reached.add(index)
            parameter.grad = None

        return take

    def local_step(self, batch: Batch, *, lr_factor: float, seed: int) -> float:
        optimizer = self._local_optimizer()
        for group, rate in zip(optimizer.param_groups, self._base_rates, strict=True):
            group["lr"] = rate * lr_factor
        total = self._backward(batch, max(1, len(batch[0])), seed)
        for parameter, master in self._coarse():
            master.grad, parameter.grad = None if parameter.grad is None else parameter.grad.to(master), None
        if self._job.clip_norm is not None:
            nn.utils.clip_grad_norm_(self._masters, self._job.clip_norm, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            for parameter, master in self._coarse():
                parameter.copy_(master)
            for parameter, flat in self._own():
                if parameter.dtype == torch.float32:
                    flat.copy_(parameter)
        return total

    def _local_optimizer(self) -> torch.optim.Optimizer:
        """The job's own optimiser, made when first needed: in the gradient family its state is the servers'.

        It works on float32 numbers throughout: for parameters in bfloat16 these are the bound memory itself, so
        that no step is too small to count.
        """
        assert self._bound, "bind parameters first"
        if self._optimizer is None:
            self._masters = [
                parameter if parameter.dtype == torch.float32 else nn.Parameter(flat)
                for parameter, flat in zip(self._parameters, self._flat_parameters, strict=True)
            ]
            self._optimizer = build_optimizer(self._job, self._masters)
            self._base_rates = [float(group["lr"]) for group in self._optimizer.param_groups]
        return self._optimizer

    def _coarse(self) -> Iterable[tuple[nn.Parameter, nn.Parameter]]:
        """Parameters that are not float32, and what is optimised in their place."""
        pairs = zip(self._parameters, self._masters, strict=True)
        return ((parameter, master) for parameter, master in pairs if parameter is not master)

    def evaluate(self, batches: Iterable[Batch]) -> Mapping[str, float]:
        return self._passes.evaluate(batches)

    def state(self) -> LearnerState:
        """Views of the memory, not copies: write them out before parameters change again."""
        check_finite(self.model)
        if self._optimizer is not None:
            return capture(self.model, self._optimizer)
        return LearnerState(tensors=_model_tensors(self.model), values={})

    def restore(self, state: LearnerState) -> None:
        load_model(self.model, state.tensors)
        for parameter, flat in self._own():
            flat.copy_(parameter.detach())
        if any(name.startswith("optimizer/") for name in state.tensors):
            self._unread = state
        self._restore_optimizer()

    def _restore_optimizer(self) -> None:
        if self._bound and self._unread is not None:
            load_optimizer(self._local_optimizer(), self._unread)
            self._unread = None


def _build(job: TrainJob) -> nn.Module:
    torch.manual_seed(job.seed)
    np.random.seed(job.seed % 2**32)
    model = job.model()
    if not isinstance(model, nn.Module):
        raise InputError(
            f"TrainJob: model() returned {type(model).__name__}, expected a torch.nn.Module or a Keras model"
        )
    if any(parameter.requires_grad for parameter in model.parameters()):
        return model
    # Sparse tables are trained too, but they are no parameters.
    from leptonai.training.pytorch.embedding import tables_of

    if not tables_of(model):
        raise InputError(f"TrainJob: {type(model).__name__} has no trainable parameters")
    return model


def _spec(name: str, parameter: nn.Parameter) -> TensorSpec:
    if parameter.dtype not in _KEPT:
        raise InputError(
            f"the parameter {name} is {parameter.dtype}, the parameter server keeps float32",
            hint="build the model in float32 or bfloat16",
        )
    return TensorSpec(name=name, shape=tuple(parameter.shape), dtype=_KEPT[parameter.dtype])


def _shaped(array: NDArray[np.float32], spec: TensorSpec) -> torch.Tensor:
    assert array.dtype == np.float32, spec.name
    assert array.shape == (spec.num_elements,), spec.name
    return torch.from_numpy(array).view(spec.shape)


def _shares_memory(parameter: nn.Parameter) -> bool:
    return parameter.dtype == torch.float32 and parameter.device.type == "cpu"


def _parts(batch: Batch, count: int) -> list[Batch]:
    length = len(batch[0])
    cuts = shares(length, min(count, length)) if length else []
    return [tuple(column[cut] for column in batch) for cut in cuts]


def _model_tensors(model: nn.Module) -> dict[str, RawTensor]:
    tensors: dict[str, RawTensor] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, torch.Tensor):
            raise InputError(f"{type(model).__name__}: state {name!r} is not a tensor and cannot be saved")
        tensors[f"model/{name}"] = to_raw(tensor)
    return tensors
