"""Step time, memory, energy and price of a transformer under each layout: closed formulas over columns."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from leptonai.compute.prediction.calibration import Calibration, calibration_for
from leptonai.compute.prediction.collectives import axis_geometry
from leptonai.compute.prediction.distinct import distinct
from leptonai.compute.prediction.exchange_times import Exchange
from leptonai.compute.prediction.gpu_kernels import Rates
from leptonai.compute.prediction.layouts import CONSISTENCY, Floats, Layouts
from leptonai.compute.prediction.machine import Machine
from leptonai.compute.prediction.memory import transformer_memory
from leptonai.compute.prediction.outcome import Predictions
from leptonai.compute.prediction.schedules import waiting_factor
from leptonai.compute.prediction.stage_times import stage_times
from leptonai.compute.prediction.state_exchange import state_times
from leptonai.compute.transformer import Transformer
from leptonai.core.errors import InputError

WHY_NOT = (
    "does not fit in memory",
    "layers are not divisible by stages and their chunks",
    "batch is not divisible by replicas and micro-batches",
    "heads are not divisible by tensor devices",
    "micro-batches are not divisible by stages, as interleaving needs",
    "needs more devices than the machine has",
    "replicas are not divisible by the devices that divide states",
    "interleaving needs a pipeline",
)
_CHUNK_ROWS = 32768
"""Rows worked on at once: a column of them is a quarter MB and stays in a core's cache."""
_ASYNCHRONOUS = tuple(CONSISTENCY.index(name) for name in ("ssp", "asp"))
_LOCAL_SGD = CONSISTENCY.index("local_sgd")
_SECONDS_PER_HOUR = 3600.0
_PRECISIONS = ("bf16", "fp16")


class TransformerPredictor:
    """Predicts steps of a transformer on equal nodes; satisfies ``Predictor``.

    Args:
        model: what is trained.
        machine: what trains it.
        global_batch: examples of one step, >= 1.
        calibration: constants; None: those of the accelerator's family, else the priors.
        precision: ``bf16`` or ``fp16``; the device's ``peak_flops`` must be of it.
        fused_attention: whether attention scores stay on the chip (FlashAttention).
        overlap_gradients: whether the gradient exchange hides behind the last micro-batch's backward pass; the
            measured Megatron runs did not.
        step_variation: standard deviation over mean of one worker's step, for who waits under each consistency.
        staleness: of ssp, >= 0.
        local_steps: steps between meetings of local_sgd, >= 1.

    Raises:
        InputError: an argument lies outside its range.

    >>> from leptonai.compute.prediction.layouts import Layout
    >>> from leptonai.compute.prediction.machine import Accelerator, Level
    >>> device = Accelerator(name="A100-80GB", peak_flops=312e12, memory_bytes=80e9,
    ...                      memory_bandwidth_bytes_per_second=2.039e12)
    >>> level = Level(bandwidth_bytes_per_second=300e9, latency_seconds=15e-6)
    >>> machine = Machine(device=device, devices_per_node=8, num_nodes=1, in_node=level, between_nodes=level)
    >>> model = Transformer(num_layers=24, hidden=2048, num_heads=16, sequence=1024, vocabulary=51200)
    >>> predictor = TransformerPredictor(model, machine, global_batch=64)
    >>> bool(0.2 < predictor.predict(Layouts.of([Layout(data=8, micro_batch=4)])).step_seconds[0] < 0.8)
    True
    """

    def __init__(
        self,
        model: Transformer,
        machine: Machine,
        *,
        global_batch: int,
        calibration: Calibration | None = None,
        precision: str = "bf16",
        fused_attention: bool = False,
        overlap_gradients: bool = False,
        step_variation: float = 0.0,
        staleness: int = 1,
        local_steps: int = 16,
    ) -> None:
        if precision not in _PRECISIONS:
            raise InputError(f"unknown precision {precision!r}", hint=f"one of: {', '.join(_PRECISIONS)}")
        if global_batch < 1 or staleness < 0 or local_steps < 1 or not step_variation >= 0:
            raise InputError(
                "TransformerPredictor: expected global_batch >= 1, staleness >= 0, local_steps >= 1 and "
                f"step_variation >= 0, found {global_batch}, {staleness}, {local_steps} and {step_variation}"
            )
        self._model, self._machine, self._global_batch = model, machine, global_batch
        self._calibration = calibration_for(machine.device.name) if calibration is None else calibration
        self._rates = Rates.of(machine.device, self._calibration)
        self._exchange = Exchange(machine=machine, calibration=self._calibration)
        self._fused, self._overlap = fused_attention, overlap_gradients
        self._variation, self._staleness, self._local_steps = step_variation, staleness, local_steps

    @property
    def calibration(self) -> Calibration:
        """The constants it uses."""
        return self._calibration

    def memory(self, layouts: Layouts) -> Floats:
        """Bytes of the fullest device of each layout at its peak."""
        if len(layouts) <= _CHUNK_ROWS:
            return transformer_memory(self._model, layouts, global_batch=self._global_batch).total
        return np.concatenate([self.memory(layouts.take(part)) for part in _parts(len(layouts))])

    def predict(self, layouts: Layouts) -> Predictions:
        """Time, interval, memory, energy and price of each layout, and why it cannot run."""
        if len(layouts) <= _CHUNK_ROWS:
            return self._predict(layouts)
        return _joined([self._predict(layouts.take(part)) for part in _parts(len(layouts))])

    def step_seconds(self, layouts: Layouts) -> Floats:
        """Time alone, for fitting."""
        columns = list(self._phases(layouts).values())
        return np.asarray(sum(columns[1:], start=columns[0]))

    def _predict(self, layouts: Layouts) -> Predictions:
        phases = self._phases(layouts)
        columns = list(phases.values())
        step = sum(columns[1:], start=columns[0])
        memory = self.memory(layouts)
        device_seconds = step * layouts.num_devices
        price = self._machine.price_per_device_hour
        return Predictions(
            step_seconds=step,
            low_seconds=step * self._calibration.low_ratio,
            high_seconds=step * self._calibration.high_ratio,
            memory_bytes=memory,
            energy_joules=device_seconds * self._machine.device.power_watts,
            price=None if price is None else device_seconds * (price / _SECONDS_PER_HOUR),
            phases=phases,
            reasons=self._reasons(layouts, memory),
            why_not=WHY_NOT,
        )

    def _phases(self, layouts: Layouts) -> dict[str, Floats]:
        """Seconds of a step by phase; all that is hidden behind other work is left out."""
        stage_of = distinct(
            [layouts.tensor, layouts.data, layouts.pipeline, layouts.micro_batch, layouts.interleave,
             layouts.recompute, layouts.sequence_parallel, layouts.placement]
        )  # fmt: skip
        some = layouts.take(stage_of[0])
        busy = self._busy_phases(some)
        phases = {name: column[stage_of[1]] for name, column in busy.items()}
        compute = phases["forward"] + phases["backward"] + phases["recompute"] + phases["host"]
        gradient, parameter, update = self._state_phases(layouts, compute)
        phases |= {"gradient exchange": gradient, "parameter exchange": parameter, "update": update}
        if self._variation:
            self._add_waiting(layouts, phases)
        return phases

    def _busy_phases(self, layouts: Layouts) -> dict[str, Floats]:
        """What does not depend on how states are divided."""
        where = axis_geometry(layouts, self._machine.devices_per_node)
        stage = stage_times(self._model, self._rates, self._exchange, layouts, where, fused=self._fused)
        count = _num_micro_batches(self._global_batch, layouts)
        middle = stage.middle
        return {
            "forward": count * (stage.forward + stage.last_forward),
            "backward": count * (stage.backward + stage.last_backward),
            "recompute": count * stage.recompute,
            "host": count * (stage.host + stage.last_host),
            "tensor exchange": count * (stage.tensor + stage.last_tensor),
            "pipeline exchange": count * stage.message,
            # (sum - max) / v, where all stages but the last are middle ones (A schedule of equal jobs).
            "pipeline bubble": (layouts.pipeline - 1.0) * middle / layouts.interleave,
        }

    def _state_phases(self, layouts: Layouts, compute: Floats) -> tuple[Floats, Floats, Floats]:
        """Exposed seconds of gradient exchange, parameter exchange and update."""
        first, kind = distinct(
            [layouts.tensor, layouts.data, layouts.pipeline, layouts.fsdp, layouts.zero, layouts.placement]
        )
        some = layouts.take(first)
        where = axis_geometry(some, self._machine.devices_per_node)
        times = state_times(self._model, self._rates, self._exchange, some, where)
        count = _num_micro_batches(self._global_batch, layouts)
        window = self._calibration.prefetch_overlap * compute
        each_gradients = count * times.each_gradients[kind]
        each_parameters = count * times.each_parameters[kind]
        together = each_gradients + each_parameters
        # Asked for early, they hide behind compute; one micro-batch's layer at the start and the end cannot.
        tail = together / (count * (self._model.num_layers / layouts.pipeline))
        exposed = np.maximum(together - window, tail)
        share = exposed / np.maximum(together, np.finfo(np.float64).tiny)
        once = times.once_gradients[kind]
        if self._overlap:
            hidden = window / count / 2
            once = np.maximum(once - hidden, once / (self._model.num_layers / layouts.pipeline))
        gradient = once + each_gradients * share
        mode = layouts.consistency
        late = (mode == _ASYNCHRONOUS[0]) | (mode == _ASYNCHRONOUS[1])
        gradient = np.where(late, np.maximum(gradient - window, 0.0), gradient)
        gradient = np.where(mode == _LOCAL_SGD, gradient / self._local_steps, gradient)
        return gradient, each_parameters * share + times.once_parameters[kind], times.update[kind]

    def _add_waiting(self, layouts: Layouts, phases: dict[str, Floats]) -> None:
        """Replicas wait for the slowest, as their consistency asks; counted with the gradient exchange."""
        factor = waiting_factor(
            layouts.data, consistency=layouts.consistency, variation=self._variation,
            staleness=self._staleness, steps_between=self._local_steps,
        )  # fmt: skip
        columns = list(phases.values())
        phases["gradient exchange"] = phases["gradient exchange"] + (factor - 1.0) * sum(
            columns[1:], start=columns[0]
        )

    def _reasons(self, layouts: Layouts, memory: Floats) -> NDArray[np.int8]:
        model, batch = self._model, layouts.data * layouts.micro_batch
        count = self._global_batch // np.maximum(batch, 1)
        wrong = (
            memory > self._machine.device.memory_bytes,
            model.num_layers % (layouts.pipeline * layouts.interleave) != 0,
            self._global_batch % batch != 0,
            model.num_heads % layouts.tensor != 0,
            (layouts.interleave > 1) & (count % layouts.pipeline != 0),
            layouts.num_devices > self._machine.num_devices,
            layouts.data % layouts.fsdp != 0,
            (layouts.interleave > 1) & (layouts.pipeline == 1),
        )
        reasons = np.zeros(len(layouts), np.int8)
        for place in range(len(wrong), 0, -1):
            reasons[wrong[place - 1]] = place
        return reasons


def _num_micro_batches(global_batch: int, layouts: Layouts) -> Floats:
    return np.ceil(global_batch / (layouts.data * np.asarray(layouts.micro_batch, np.float64)))


def _parts(num_rows: int) -> list[slice]:
    return [slice(start, start + _CHUNK_ROWS) for start in range(0, num_rows, _CHUNK_ROWS)]


def _joined(parts: list[Predictions]) -> Predictions:
    """All rows of several predictions."""

    def column(name: str) -> Floats:
        return np.concatenate([getattr(part, name) for part in parts])

    priced = parts[0].price is not None
    return Predictions(
        step_seconds=column("step_seconds"), low_seconds=column("low_seconds"),
        high_seconds=column("high_seconds"), memory_bytes=column("memory_bytes"),
        energy_joules=column("energy_joules"), price=column("price") if priced else None,
        phases={name: np.concatenate([part.phases[name] for part in parts]) for name in parts[0].phases},
        reasons=np.concatenate([part.reasons for part in parts]), why_not=parts[0].why_not,
    )  # fmt: skip
