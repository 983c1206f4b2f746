"""The search for transformers: their space on a machine, and the whole plan in one call."""

from __future__ import annotations

from leptonai.compute.prediction.machine import Machine
from leptonai.compute.prediction.outcome import Predictor
from leptonai.compute.prediction.transformer_step import TransformerPredictor
from leptonai.compute.search.answer import SearchResult
from leptonai.compute.search.rows import Goal
from leptonai.compute.search.search import Progress, search
from leptonai.compute.search.space import Space
from leptonai.compute.transformer import Transformer


def transformer_space(
    model: Transformer,
    machine: Machine,
    global_batch: int,
    *,
    num_devices: int | None = None,
    fewer_devices: bool = False,
    max_micro_batch: int | None = None,
    consistency: tuple[str, ...] = ("bsp",),
) -> Space:
    """All layouts of a transformer on a machine.

    Args:
        model: the transformer.
        machine: the machine.
        global_batch: examples of one optimiser step, >= 1.
        num_devices: how many to take; None: all.
        fewer_devices: whether layouts may take fewer, as :meth:`Space.with_fewer_devices` says.
        max_micro_batch: None: no bound but the memory.
        consistency: modes; all but bsp alter results, so they are there only if asked for.

    Raises:
        InputError: an argument lies outside its range.
    """
    space = Space(
        num_devices=(machine.num_devices if num_devices is None else num_devices,),
        devices_per_node=machine.devices_per_node,
        global_batch=global_batch,
        num_layers=model.num_layers,
        num_heads=model.num_heads,
        max_micro_batch=max_micro_batch,
        consistency=consistency,
    )
    return space.with_fewer_devices() if fewer_devices else space


def plan_transformer(
    model: Transformer,
    machine: Machine,
    global_batch: int,
    *,
    goal: Goal = "time",
    space: Space | None = None,
    predictor: Predictor | None = None,
    top: int = 20,
    max_step_seconds: float | None = None,
    max_step_price: float | None = None,
    on_progress: Progress = lambda done, total: None,
) -> SearchResult:
    """The best layouts of a transformer on a machine.

    Args:
        model: the transformer.
        machine: the machine; the memory of its devices is the limit.
        global_batch: examples of one optimiser step, >= 1.
        goal: what to make small.
        space: what may vary; None: :func:`transformer_space`, all devices and bsp.
        predictor: costs layouts; None: :class:`TransformerPredictor` with the calibration of the accelerator.
        top: how many of the best to keep, >= 1.
        max_step_seconds: longer steps are no answer; None: no bound.
        max_step_price: dearer steps are no answer; None: no bound.
        on_progress: called with the layouts seen and all there are.

    Raises:
        InputError: as :func:`search` does.
    """
    return search(
        transformer_space(model, machine, global_batch) if space is None else space,
        TransformerPredictor(model, machine, global_batch=global_batch) if predictor is None else predictor,
        memory_limit_bytes=machine.device.memory_bytes,
        goal=goal,
        top=top,
        max_step_seconds=max_step_seconds,
        max_step_price=max_step_price,
        currency=machine.currency,
        on_progress=on_progress,
    )
