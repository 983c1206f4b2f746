"""The job a user writes: one frozen value that says what to train, apart from what only alters speed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from leptonai.core.errors import InputError
from leptonai.core.privacy import Privacy
from leptonai.training.data.dataset import Data
from leptonai.training.elastic import Elastic
from leptonai.training.optimizers import Optimizer
from leptonai.training.parameter_server.settings import ParameterServer
from leptonai.training.schedules import Constant, Schedule

Loss = str | Callable[[Any, Any], Any]
Metric = str | Callable[[Any, Any], Any]
Precision = Literal["auto", "float32", "bfloat16"]
Toggle = Literal["auto", "on", "off"]

NAMED_LOSSES = ("cross_entropy", "binary_cross_entropy", "mse")
NAMED_METRICS = ("accuracy", "mae", "mse")


_PARTS = (("elastic", Elastic), ("parameter_server", ParameterServer), ("privacy", Privacy))


@dataclass(frozen=True, slots=True, kw_only=True)
class StopWhen:
    """End the run early once an evaluation's ``metric`` reaches ``value`` (or falls to it, for ``below=True``)."""

    metric: str
    value: float
    below: bool = False

    def reached(self, metrics: Mapping[str, float]) -> bool:
        """Whether these metrics satisfy the condition."""
        found = metrics.get(self.metric)
        return found is not None and (found <= self.value if self.below else found >= self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluate:
    """When and how the evaluation set is used.

    Args:
        every_epochs: evaluate after each such number of epochs, >= 0 (0: only at the end).
        every_steps: also every so many steps, 0 for never.
        from_step: no evaluation before this many steps (the one at the end always happens).
        batch_size: examples in one forward pass of one worker; changes speed, not results.
        metrics: named metrics, or functions of (outputs, labels) giving one value an example. None: accuracy
            for a job whose loss is a cross entropy, else none.
    """

    every_epochs: int = 1
    every_steps: int = 0
    from_step: int = 0
    batch_size: int = 256
    metrics: tuple[str, ...] | Mapping[str, Metric] | None = None

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.every_epochs < 0 or self.every_steps < 0:
            raise InputError("Evaluate: expected batch_size >= 1, every_epochs >= 0 and every_steps >= 0")
        for metric in self.named(None).values():
            if isinstance(metric, str) and metric not in NAMED_METRICS:
                raise InputError(
                    f"Evaluate: unknown metric {metric!r}",
                    hint=f"one of {', '.join(NAMED_METRICS)}, or a function",
                )

    def named(self, loss: Loss | None) -> Mapping[str, Metric]:
        """Metrics by name, for a job with this loss."""
        if self.metrics is None:
            return {"accuracy": "accuracy"} if loss in ("cross_entropy", "binary_cross_entropy") else {}
        return self.metrics if isinstance(self.metrics, Mapping) else {name: name for name in self.metrics}


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoints:
    """When to save: every so many steps and/or seconds (0: not by that rule), and always at the end.

    The last ``keep`` checkpoints stay.
    """

    every_steps: int = 0
    every_seconds: float = 60.0
    keep: int = 3

    def __post_init__(self) -> None:
        if self.every_steps < 0 or self.every_seconds < 0 or self.keep < 1:
            raise InputError("Checkpoints: expected every_steps >= 0, every_seconds >= 0 and keep >= 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Options that change only how fast the run goes, never which numbers it computes beyond rounding.

    Args:
        memory_format: ``channels_last`` for convolutions, or leave it to autotune.
        compile: compile the model (``torch.compile``), or leave it to autotune.
        prefetch: batches prepared ahead on a thread of their own, >= 0; None chooses by where the data lies.
        log_every_seconds: how often the loss is summed over workers and reported, > 0.
    """

    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    compile: Toggle = "auto"
    prefetch: int | None = None
    log_every_seconds: float = 0.5

    def __post_init__(self) -> None:
        if self.memory_format not in ("auto", "contiguous", "channels_last"):
            hint = "one of auto, contiguous, channels_last"
            raise InputError(f"Speed: unknown memory_format {self.memory_format!r}", hint=hint)
        if self.compile not in ("auto", "on", "off"):
            raise InputError(f"Speed: unknown compile {self.compile!r}", hint="one of auto, on, off")
        if (self.prefetch is not None and self.prefetch < 0) or not self.log_every_seconds > 0:
            raise InputError("Speed: expected prefetch >= 0 and log_every_seconds > 0")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainJob:
    """What to train. Every field but ``speed``, ``checkpoints``, ``elastic`` and ``name`` alters the result.

    Args:
        model: a function without arguments that builds a ``torch.nn.Module`` or a Keras model; it is called in
            each worker after seeding, so all start equal.
        data: the examples, or a function that returns them (called in the workers, keeps the launcher light).
        loss: ``"cross_entropy"`` (integer labels, logits), ``"binary_cross_entropy"`` (logits), ``"mse"``, or a
            function of (outputs, labels) returning the mean loss. None: the loss a Keras model was compiled with.
        step: instead of ``loss``, a function of (model, batch) that returns the mean loss over the batch.
        optimizer: ``SGD``, ``Adam`` or ``AdamW``, or for PyTorch a function from parameters to a
            ``torch.optim.Optimizer``. None: the one a Keras model was compiled with, else ``Adam()``.
        schedule: factor on the learning rate as a function of (step, total_steps).
        epochs, steps: length of the run; exactly one is given. Epochs may be fractional.
        global_batch_size: examples in one optimiser step, over all workers, >= 1.
        accumulate: forward/backward passes each worker's share is cut into, >= 1.
        clip_norm: largest L2 norm of the whole gradient, > 0; None: no clipping.
        precision: ``"float32"``, ``"bfloat16"`` (autocast, float32 weights) or ``"auto"``: chosen once by autotune.
        shuffle: whether every epoch has a random order of its own; False: the order of the data, each time.
        seed: of weights, data order, augmentation and dropout; >= 0.
        elastic: what happens when a worker is lost; None: the run ends.
        parameter_server: keep the parameters in servers; None: workers sum their gradients among themselves.
        privacy: train with differential privacy; None: without.

    Raises:
        InputError: a value lies outside its range.

    >>> import numpy as np
    >>> from leptonai.training.data.dataset import Arrays, Data
    >>> data = Data(train=Arrays(np.zeros((8, 2), np.float32), np.zeros(8, np.int64)))
    >>> TrainJob(model=lambda: None, data=data, epochs=2, global_batch_size=4).total_steps(8)
    4
    """

    model: Callable[[], Any]
    data: Data | Callable[[], Data]
    global_batch_size: int
    loss: Loss | None = None
    step: Callable[[Any, Any], Any] | None = None
    optimizer: Optimizer | Callable[[Any], Any] | None = None
    schedule: Schedule = field(default_factory=Constant)
    epochs: float | None = None
    steps: int | None = None
    accumulate: int = 1
    clip_norm: float | None = None
    precision: Precision = "auto"
    shuffle: bool = True
    seed: int = 0
    evaluate: Evaluate = field(default_factory=Evaluate)
    stop_when: StopWhen | None = None
    checkpoints: Checkpoints = field(default_factory=Checkpoints)
    speed: Speed = field(default_factory=Speed)
    elastic: Elastic | None = field(default_factory=Elastic)
    parameter_server: ParameterServer | None = None
    privacy: Privacy | None = None
    name: str = ""

    def __post_init__(self) -> None:
        if not callable(self.model):
            raise InputError(
                "TrainJob: model must be a function that builds the model",
                hint="write model=create_model, or lambda: Net()",
            )
        if not (isinstance(self.data, Data) or callable(self.data)):
            raise InputError("TrainJob: data must be a Data value or a function that returns one")
        if (self.epochs is None) == (self.steps is None):
            raise InputError("TrainJob: give exactly one of epochs and steps")
        if self.epochs is not None and not (self.epochs > 0 and math.isfinite(self.epochs)):
            raise InputError(f"TrainJob: expected epochs > 0, found {self.epochs}")
        for name, smallest in (("steps", 1), ("global_batch_size", 1), ("accumulate", 1), ("seed", 0)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < smallest):
                raise InputError(
                    f"TrainJob: expected {name} to be a whole number >= {smallest}, found {value!r}"
                )
        if self.clip_norm is not None and not self.clip_norm > 0:
            raise InputError(f"TrainJob: expected clip_norm > 0, found {self.clip_norm}")
        if self.loss is not None and self.step is not None:
            raise InputError("TrainJob: give loss or step, not both")
        if isinstance(self.loss, str) and self.loss not in NAMED_LOSSES:
            raise InputError(
                f"TrainJob: unknown loss {self.loss!r}",
                hint=f"one of {', '.join(NAMED_LOSSES)}, or a function",
            )
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise InputError(
                f"TrainJob: unknown precision {self.precision!r}", hint="one of auto, float32, bfloat16"
            )
        for name, kind in _PARTS:
            value = getattr(self, name)
            if not (value is None or isinstance(value, kind)):
                raise InputError(
                    f"TrainJob: expected {name} to be a value of type {kind.__name__}, found {value!r}",
                    hint=f"write {name}={kind.__name__}(...), or None",
                )

    def load_data(self) -> Data:
        """The data, built if it was given as a function."""
        data = self.data if isinstance(self.data, Data) else self.data()
        if not isinstance(data, Data):
            raise InputError(f"TrainJob: data() returned {type(data).__name__}, expected leptonai Data")
        return data

    def steps_per_epoch(self, num_examples: int) -> int:
        """Optimiser steps in one pass over ``num_examples`` examples; the last may be smaller."""
        return -(-num_examples // self.global_batch_size)

    def total_steps(self, num_examples: int) -> int:
        """Optimiser steps in the whole run."""
        if self.steps is not None:
            return self.steps
        assert self.epochs is not None
        return max(1, round(self.epochs * self.steps_per_epoch(num_examples)))
