"""What will run where, how fast it should be, and why: the answer of the planner."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from leptonai.compute.forecast import Forecast
from leptonai.compute.servers import ServerPlan
from leptonai.compute.workload import Workload
from leptonai.core.errors import InputError
from leptonai.core.privacy import PrivacyForecast
from leptonai.core.values import value_from_json, value_to_json

RunPrecision = Literal["float32", "bfloat16"]
MemoryFormat = Literal["contiguous", "channels_last"]
Strategy = Literal["single", "data_parallel", "parameter_server"]
Backend = Literal["none", "gloo", "nccl", "served"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """One timed attempt of autotune."""

    description: str
    milliseconds_per_step: float

    def __post_init__(self) -> None:
        _check(self, ("milliseconds_per_step",))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tuning:
    """How each worker computes; only ``precision`` alters results.

    Args:
        precision: of the arithmetic; weights stay float32.
        memory_format: order of image dimensions in memory.
        compile: whether the model is compiled.
        threads: compute threads of each worker, >= 1.
        why: one sentence: measured, asked for, or the default.
        trials: what was timed to choose.
    """

    precision: RunPrecision = "float32"
    memory_format: MemoryFormat = "contiguous"
    compile: bool = False
    threads: int = 1
    why: str = ""
    trials: tuple[Trial, ...] = ()

    def __post_init__(self) -> None:
        if self.threads < 1:
            raise InputError(f"Tuning: expected threads >= 1, found {self.threads}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Where one worker runs.

    Args:
        rank: 0-based number of the worker.
        node: name of its node.
        device_kind: what it computes on.
        device_index: which GPU of the node; None for a CPU.
        cores: the cores it is pinned to; empty: not pinned.
        threads: its compute threads, >= 1.
    """

    rank: int
    node: str
    device_kind: Literal["cpu", "gpu"] = "cpu"
    device_index: int | None = None
    cores: tuple[int, ...] = ()
    threads: int = 1

    def __post_init__(self) -> None:
        if self.rank < 0 or self.threads < 1:
            raise InputError(
                f"Placement: expected rank >= 0 and threads >= 1, found {self.rank} and {self.threads}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Predicted cost of one optimiser step.

    Args:
        bytes_exchanged: what each worker sends in the exchange of gradients.
        bandwidth_bytes_per_second: of the slowest link used; None: nothing is exchanged, or not known.
        flops: floating-point operations over all workers.
        flops_per_second: of all workers together; None: not known.
        transfer_seconds: bytes exchanged / bandwidth; None: not known.
        compute_seconds: FLOPs / FLOP/s; None: not known.
        total_seconds: their sum; None: one of them is not known.
        assumptions: everything the numbers rest on, one sentence each.
    """

    bytes_exchanged: int
    bandwidth_bytes_per_second: float | None
    flops: float
    flops_per_second: float | None
    transfer_seconds: float | None
    compute_seconds: float | None
    total_seconds: float | None
    assumptions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check(self, ("bytes_exchanged", "bandwidth_bytes_per_second", "flops", "flops_per_second"))
        _check(self, ("transfer_seconds", "compute_seconds", "total_seconds"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One run, decided: the same inputs always give the same plan.

    ``placements`` is in order of rank. ``warnings`` are sentences for people; a plan with warnings can run.
    ``servers``: of a run with a parameter server; None: workers exchange gradients among themselves.
    ``privacy``: of a private run. ``forecast``: of a step, where the machine's rates were measured.
    """

    strategy: Strategy
    backend: Backend
    placements: tuple[Placement, ...]
    tuning: Tuning
    estimate: Estimate
    workload: Workload
    warnings: tuple[str, ...] = ()
    servers: ServerPlan | None = None
    privacy: PrivacyForecast | None = None
    forecast: Forecast | None = None

    def __post_init__(self) -> None:
        if [placement.rank for placement in self.placements] != list(range(len(self.placements))):
            raise InputError("Plan: expected placements for ranks 0, 1, 2, ... in order")
        if not self.placements:
            raise InputError("Plan: expected at least one worker")

    @property
    def num_workers(self) -> int:
        """Workers of the run."""
        return len(self.placements)

    @property
    def predicted_step_seconds(self) -> float | None:
        """One step, by the forecast where there is one, else T_total; None: not known."""
        return self.estimate.total_seconds if self.forecast is None else self.forecast.step_seconds

    def to_json(self) -> dict[str, Any]:
        """The plan as JSON-ready values; :func:`plan_from_json` reads them back."""
        values: dict[str, Any] = value_to_json(self)
        return values


def plan_from_json(values: Mapping[str, Any]) -> Plan:
    """Inverse of :meth:`Plan.to_json`; unknown keys are ignored so that old readers read new plans.

    Raises:
        InputError: a value is missing or has the wrong type.
    """
    try:
        return value_from_json(Plan, values)
    except InputError as error:
        raise InputError(f"not a plan: {error.message}", hint=error.hint) from error


def _check(value: object, names: tuple[str, ...]) -> None:
    for name in names:
        found = getattr(value, name)
        if found is not None and not (found >= 0 and math.isfinite(found)):
            raise InputError(f"{type(value).__name__}: expected {name} >= 0, found {found}")
