"""What a PyTorch job costs: parameters, FLOPs and activations per example, by layer, on two real examples."""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from leptonai.compute.workload import LayerWork, Workload
from leptonai.core.errors import InputError
from leptonai.training.data.dataset import Data, label_range
from leptonai.training.job import TrainJob
from leptonai.training.learner import Batch
from leptonai.training.pytorch.losses import loss_function, num_classes

SAMPLE_EXAMPLES = 2  # batch normalisation needs two


class Profile(NamedTuple):
    """What a job costs, and which trainable parameters its loss did not reach on the examples looked at."""

    workload: Workload
    unused_parameters: tuple[str, ...]


def profile(job: TrainJob, data: Data, model: nn.Module) -> Profile:
    """Run forward and backward once on a few examples, counting; the model's weights stay as they are.

    FLOPs are those PyTorch counts (matrix products, convolutions, attention), 2 for a multiply-add.

    Raises:
        InputError: labels lie outside the classes the model's output has.
    """
    batch = sample(data, SAMPLE_EXAMPLES)
    tensors = tuple(torch.from_numpy(np.ascontiguousarray(column)) for column in batch)
    outputs: dict[str, int] = {}
    counter = FlopCounterMode(display=False)
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    hooks = [
        _record_output(module, name, outputs)
        for name, module in model.named_modules()
        if not list(module.children())
    ]
    try:
        with counter:
            loss = _loss(job, data, model, tensors)
            loss.backward()
        unused = tuple(name for name, p in model.named_parameters() if p.requires_grad and p.grad is None)
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad(set_to_none=True)
        for name, buffer in model.named_buffers():
            buffer.copy_(buffers[name])
    return Profile(_workload(job, data, model, outputs, counter), unused)


def sample(data: Data, num_examples: int) -> Batch:
    """The first training examples, prepared as in training but not augmented."""
    return data.prepared(data.train.take(np.arange(num_examples, dtype=np.int64) % len(data.train)))


def _loss(job: TrainJob, data: Data, model: nn.Module, tensors: tuple[torch.Tensor, ...]) -> torch.Tensor:
    if job.step is not None:
        found: Any = job.step(model, tensors)
    else:
        *inputs, labels = tensors
        outputs = model(*inputs)
        _check_labels(data, num_classes(job.loss, outputs) if not labels.is_floating_point() else None)
        found = loss_function(job.loss)(outputs, labels)
    if not isinstance(found, torch.Tensor) or found.numel() != 1:
        raise InputError(
            "TrainJob: the loss must be one number, the mean over the batch",
            hint="did step or loss forget .mean()?",
        )
    return found


def _check_labels(data: Data, classes: int | None) -> None:
    for name, arrays in (("training", data.train), ("evaluation", data.evaluate)):
        span = label_range(arrays) if arrays is not None and classes is not None else None
        if span is not None and classes is not None and (span[0] < 0 or span[1] >= classes):
            raise InputError(
                f"labels out of range: the {name} labels run from {span[0]} to {span[1]}, "
                f"the model has {classes} outputs",
                hint=f"labels must be whole numbers from 0 to {classes - 1}",
            )


def _record_output(
    module: nn.Module, name: str, outputs: dict[str, int]
) -> torch.utils.hooks.RemovableHandle:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        if isinstance(output, torch.Tensor):
            outputs[name] = outputs.get(name, 0) + output.numel() * output.element_size()

    return module.register_forward_hook(hook)


def _workload(
    job: TrainJob, data: Data, model: nn.Module, outputs: dict[str, int], counter: FlopCounterMode
) -> Workload:
    counts = counter.get_flop_counts()
    root = type(model).__name__
    layers = tuple(
        LayerWork(
            name=name,
            kind=type(module).__name__,
            num_parameters=sum(p.numel() for p in module.parameters()),
            flops=sum(counts.get(f"{root}.{name}", {}).values()) / SAMPLE_EXAMPLES,
            output_bytes=outputs.get(name, 0) // SAMPLE_EXAMPLES,
        )
        for name, module in model.named_modules()
        if name and not list(module.children())
    )
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return Workload(
        num_parameters=sum(p.numel() for p in parameters),
        parameter_bytes=sum(p.numel() * p.element_size() for p in parameters),
        flops_per_example=counter.get_total_flops() / SAMPLE_EXAMPLES,
        activation_bytes_per_example=sum(outputs.values()) // SAMPLE_EXAMPLES,
        num_examples=len(data.train),
        global_batch_size=job.global_batch_size,
        steps_per_epoch=job.steps_per_epoch(len(data.train)),
        total_steps=job.total_steps(len(data.train)),
        layers=layers,
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
