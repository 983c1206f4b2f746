"""What is asked of launch, and what comes back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from leptonai.compute.cluster import Cluster
from leptonai.compute.forecast import PhaseCheck
from leptonai.compute.plan import Plan
from leptonai.core.faults import FaultScript
from leptonai.launch.jobs import JobSource

if TYPE_CHECKING:
    from leptonai.training.learner import LearnerState


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochReport:
    """The end of an epoch, for whoever steers a run from outside."""

    epoch: int
    step: int
    metrics: Mapping[str, float]
    load_state: Callable[[], LearnerState]


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochAnswer:
    """What to do after an epoch: stop, or go on, maybe with another learning rate."""

    stop: bool = False
    learning_rate: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """One run, as asked for.

    Args:
        cluster_text: the cluster file as written, kept in the run directory.
        run_dir: where the run is kept; None: a new directory under ``./runs``.
        resume: go on in ``run_dir`` from its newest whole checkpoint.
        overrides: ``key=value`` settings on top of the job file's.
        autotune: time a few steps to choose how to compute.
        home: where the workspace database lies.
        epoch_gate: asked after every epoch, while the workers wait.
        faults: what shall go wrong; None: nothing.
        ledger_url: database of the privacy ledger; None: the workspace in ``home``.
    """

    job: JobSource
    cluster: Cluster
    cluster_text: str
    home: Path
    run_dir: Path | None = None
    resume: bool = False
    overrides: tuple[str, ...] = ()
    autotune: bool = True
    epoch_gate: Callable[[EpochReport], EpochAnswer] | None = None
    faults: FaultScript | None = None
    ledger_url: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """How a run ended; ``seconds`` is wall time from the request, ``examples`` what was trained on in this call.

    ``pushes_lost`` counts updates that a parameter server acknowledged and does not hold at the end; None where
    there is no server. ``privacy``: what a private run has cost, (epsilon, delta), over all its launches.
    ``checks``: the plan's forecast of a step against what was measured; empty where either is missing.
    """

    run_id: str
    run_dir: Path
    status: str
    task: str
    metrics: Mapping[str, float]
    examples: int
    seconds: float
    step: int
    checkpoint_path: Path | None
    checkpoint_digest: str
    plan: Plan
    predicted_step_seconds: float | None
    measured_step_seconds: float | None
    pushes_lost: int | None = None
    privacy: tuple[float, float] | None = None
    checks: tuple[PhaseCheck, ...] = ()


def result_to_json(result: RunResult) -> dict[str, Any]:
    """The result as JSON-ready values, paths relative to the run directory where they lie in it."""
    checkpoint = result.checkpoint_path
    return {
        "run_id": result.run_id,
        "run_dir": str(result.run_dir),
        "status": result.status,
        "task": result.task,
        "metrics": dict(result.metrics),
        "examples": result.examples,
        "seconds": result.seconds,
        "step": result.step,
        "num_workers": result.plan.num_workers,
        "checkpoint": None if checkpoint is None else str(checkpoint.relative_to(result.run_dir)),
        "checkpoint_digest": result.checkpoint_digest,
        "predicted_step_seconds": result.predicted_step_seconds,
        "measured_step_seconds": result.measured_step_seconds,
        "precision": result.plan.tuning.precision,
        **_privacy(result.privacy),
        **_checks(result.checks),
    }


def _privacy(spent: tuple[float, float] | None) -> dict[str, Any]:
    return {} if spent is None else {"privacy": {"epsilon": spent[0], "delta": spent[1]}}


def _checks(checks: tuple[PhaseCheck, ...]) -> dict[str, Any]:
    rows = [
        {
            "name": row.name,
            "predicted_seconds": row.predicted_seconds,
            "measured_seconds": row.measured_seconds,
        }
        for row in checks
    ]
    return {"predicted_against_measured": rows} if rows else {}
