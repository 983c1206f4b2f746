"""Use a module on arrays in the caller's own process: ``evaluate`` and ``predict``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import TensorDataset

from leptonai.core.errors import InputError
from leptonai.sdk.arguments import Examples, as_array, examples_from
from leptonai.sdk.inference import fitting_loss
from leptonai.sdk.torch_losses import last_activation, loss_and_metrics
from leptonai.training.job import Loss, Metric
from leptonai.training.pytorch.losses import loss_function, metric_function

BATCH_SIZE = 512  # only speed depends on it


def predict(module: nn.Module, x: Any, *, batch_size: int = BATCH_SIZE) -> NDArray[Any]:
    """The module's outputs for ``x``, as one array.

    >>> layer = torch.nn.Linear(3, 2)
    >>> predict(layer, np.zeros((5, 3))).shape
    (5, 2)
    """
    inputs = tuple(
        _floats(as_array(column, "predict: x")) for column in (x if isinstance(x, tuple) else (x,))
    )
    parts = [_outputs(module, batch, "predict").numpy() for batch in _batches(inputs, batch_size)]
    return np.concatenate(parts)


def evaluate(
    module: nn.Module, x: Any, y: Any = None, *, batch_size: int = BATCH_SIZE, loss: Loss | None = None
) -> dict[str, float]:
    """Loss and accuracy (where it means something) on these examples.

    Args:
        loss: as given to ``fit``; None: the one that fits the module's output and the labels.
    """
    examples = torch_examples(x, y, "evaluate")
    found, metrics = chosen_loss(module, examples, loss, "evaluate")
    functions: dict[str, Callable[[Any, Any], Any]] = {
        name: metric_function(metric) for name, metric in metrics.items()
    }
    sums = dict.fromkeys(["loss", *functions], 0.0)
    mean_loss = loss_function(found)
    for *inputs, labels in _batches((*examples.inputs, examples.labels), batch_size):
        outputs, targets = _outputs(module, tuple(inputs), "evaluate"), torch.from_numpy(labels)
        sums["loss"] += float(mean_loss(outputs, targets)) * len(labels)
        for name, metric in functions.items():
            sums[name] += float(metric(outputs, targets).sum())
    return {name: value / len(examples) for name, value in sums.items()}


def torch_examples(x: Any, y: Any, where: str) -> Examples:
    """Examples for a module: a tuple is several inputs; float64 becomes float32, PyTorch's own type."""
    if isinstance(x, TensorDataset):
        if y is not None:
            raise InputError(f"{where}: a TensorDataset holds its labels itself, leave y out")
        *columns, y = x.tensors
        x = tuple(columns)
    several = isinstance(x, tuple)
    found = examples_from(
        x[0] if several and len(x) == 1 else x,
        y,
        where=where,
        input_names=[f"input {place}" for place in range(len(x))] if several else (),
    )
    return Examples(inputs=tuple(_floats(column) for column in found.inputs), labels=_floats(found.labels))


def chosen_loss(
    module: nn.Module, examples: Examples, loss: Loss | None, where: str
) -> tuple[Loss, dict[str, Metric]]:
    """The loss asked for or the one that fits, with the metrics that go with it."""
    if loss is not None:
        named: dict[str, Metric] = {"accuracy": "accuracy"} if "cross_entropy" in str(loss) else {}
        return loss, named if isinstance(loss, str) else {}
    outputs = _outputs(module, tuple(column[:2] for column in examples.inputs), where)
    if outputs.ndim > 2:
        raise InputError(f"{where}: no loss can be chosen for an output of shape {tuple(outputs.shape[1:])}")
    activation = last_activation(module)
    width = outputs.shape[-1] if outputs.ndim == 2 else 1
    name = fitting_loss(outputs=width, labels=examples.labels, activation=activation)
    found, metrics = loss_and_metrics(name, activation)
    return found, dict(metrics)


def _outputs(module: nn.Module, inputs: tuple[NDArray[Any], ...], where: str) -> torch.Tensor:
    """The module's outputs in evaluation mode, whatever mode it is in."""
    was_training = module.training
    module.eval()
    try:
        with torch.no_grad():
            outputs = module(*(torch.from_numpy(np.ascontiguousarray(column)) for column in inputs))
    except (RuntimeError, TypeError, ValueError) as error:
        shapes = ", ".join(f"{column.dtype} {column.shape[1:]}" for column in inputs)
        raise InputError(
            f"{where}: the module cannot take this data ({shapes} an example): {error}"
        ) from error
    finally:
        module.train(was_training)
    if not isinstance(outputs, torch.Tensor):
        raise InputError(f"{where}: the module returns {type(outputs).__name__}, expected one tensor")
    return outputs


def _batches(columns: tuple[NDArray[Any], ...], size: int) -> Iterator[tuple[NDArray[Any], ...]]:
    for start in range(0, len(columns[0]), size):
        yield tuple(np.array(column[start : start + size]) for column in columns)


def _floats(column: NDArray[Any]) -> NDArray[Any]:
    return column.astype(np.float32) if column.dtype == np.float64 else column
