"""One live job on one cluster, from the caller's own process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from leptonai.compute.engines.local import LocalEngine
from leptonai.core.errors import Fault
from leptonai.core.events import Event
from leptonai.launch.jobs import LiveJob
from leptonai.launch.request import EpochAnswer, EpochReport, RunResult, TrainRequest
from leptonai.launch.run import train
from leptonai.sdk.cluster import TrainingCluster

if TYPE_CHECKING:
    from leptonai.training.learner import LearnerState

DEFAULT_HOME = "~/.local/share/lepton"
Gate = Callable[[EpochReport], EpochAnswer]


def run_live(
    job: LiveJob,
    cluster: TrainingCluster,
    *,
    engine: LocalEngine,
    on_event: Callable[[Event], None],
    gate: Gate | None = None,
) -> RunResult:
    """Train the job on the cluster to its end.

    Raises:
        InputError, Refused, Fault: see :func:`leptonai.launch.run.train`.
    """
    request = TrainRequest(
        job=job,
        cluster=cluster.cluster,
        cluster_text=cluster.text,
        home=Path(os.environ.get("LEPTON_HOME") or DEFAULT_HOME).expanduser().absolute(),
        run_dir=cluster.run_dir,
        epoch_gate=gate,
        ledger_url=os.environ.get("LEPTON_WORKSPACE"),
    )
    return train(request, on_event=on_event, engine=engine)


def search_path() -> tuple[str, ...]:
    """Where the caller's own modules are found, as absolute folders."""
    return tuple(str(Path(place).absolute()) for place in sys.path)


def final_state(result: RunResult) -> LearnerState:
    """The weights a run ended with.

    Raises:
        Fault: they could not be saved.
    """
    from leptonai.training.checkpoint import CheckpointStore

    if result.checkpoint_path is None:
        raise Fault(f"run {result.run_id} saved no weights", hint=f"is the disk full? see {result.run_dir}")
    checkpoint = CheckpointStore(result.checkpoint_path.parent).load(result.checkpoint_path)
    if checkpoint.step != result.step:
        raise Fault(
            f"run {result.run_id} took {result.step} steps but its last weights are of step {checkpoint.step}",
            hint=f"is the disk full? see {result.run_dir}",
        )
    return checkpoint.state
