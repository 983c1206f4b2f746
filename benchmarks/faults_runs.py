"""The runs of ``faults``, one a command: ``python -m benchmarks.faults_runs PART --report FILE --count N``.

Each drives a real run on this machine through the same call as ``lepton train`` and writes one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import ROOT
from benchmarks.killing import Killer
from leptonai.compute.cluster import Cluster, Device, Node
from leptonai.core.control import Halt, send_order
from leptonai.core.events import Event, FaultInjected
from leptonai.core.faults import FaultScript, random_faults
from leptonai.launch.engine import likely_framework, start_engine
from leptonai.launch.fault_report import fault_report
from leptonai.launch.jobs import JobFile
from leptonai.launch.request import RunResult, TrainRequest
from leptonai.launch.run import train
from leptonai.training.checkpoint import CheckpointStore

WORKLOADS = ROOT / "benchmarks" / "workloads"
NUM_EXAMPLES, STEPS = 16_384, 256
"""Of ``counting_job``: examples and steps in an epoch."""
RESTART_LIMIT_SECONDS = 120.0


class PartFailed(Exception):
    """A run did not do what its part is about."""


def drive(
    name: str, folder: Path, on_event: Callable[[Event], None], *, faults: FaultScript | None = None
) -> RunResult:
    """One run of a workload on two workers."""
    job = WORKLOADS / f"{name}.py"
    node = Node(name="here", devices=(Device(kind="cpu", cores=2),))
    request = TrainRequest(
        job=JobFile(path=job), cluster_text="nodes: [{name: here}]\n", home=folder / "home",
        cluster=Cluster(name="faults", nodes=(node,), num_workers=2, threads_per_worker=1),
        run_dir=folder / "run", autotune=False, faults=faults,
    )  # fmt: skip
    with start_engine(likely_framework(job)) as engine:
        return train(request, on_event=on_event, engine=engine)


# -- twenty random kills ------------------------------------------------------------------------------


def random_kills(count: int, folder: Path, seed: int) -> dict[str, Any]:
    """Kills drawn by seed, and what the parameters themselves say of the examples."""
    epochs = max(1, count // 2)
    os.environ["BENCHMARK_EPOCHS"] = str(epochs)
    # Not up to the very end: a worker that others overtook does not come to the last steps.
    script = random_faults(
        seed, count=count, kinds=("kill",), num_workers=2, num_servers=2, total_steps=epochs * STEPS * 3 // 4
    )
    events: list[Event] = []
    result = drive("counting_job", folder, events.append, faults=script)
    books = fault_report(events, examples_per_epoch=NUM_EXAMPLES)
    lost, repeated = audit(result, epochs=books.epochs)
    return {
        "kills": sum(isinstance(event, FaultInjected) for event in events),
        "deaths": books.workers_lost + books.servers_restarted,
        "pushes_lost": result.pushes_lost,
        "lost_by_books": books.samples_lost,
        "repeated_by_books": books.samples_repeated,
        "lost": lost,
        "repeated": repeated,
        "epochs": books.epochs,
    }


def audit(result: RunResult, *, epochs: int) -> tuple[int, int]:
    """Examples lost and repeated over all epochs, from the weights of ``counting_job``.

    Each weight must be ``-epochs``; what lies above was lost, what lies below was repeated. The two columns are
    on different shards; the worse counts.
    """
    assert result.checkpoint_path is not None
    state = CheckpointStore(result.checkpoint_path.parent, keep=1).load(result.checkpoint_path).state
    columns = [
        np.frombuffer(raw.data, np.float32)
        for name, raw in state.tensors.items()
        if name.startswith("server/parameters/")
    ]
    if len(columns) != 2 or any(len(column) != NUM_EXAMPLES for column in columns):
        raise PartFailed("the checkpoint does not hold the two columns")
    return count_errors(columns, epochs=epochs)


def count_errors(columns: list[Any], *, epochs: int) -> tuple[int, int]:
    """(lost, repeated) by the worse column.

    >>> count_errors([np.array([-2.0, -2.0]), np.array([-1.0, -4.0])], epochs=2)
    (1, 2)
    """
    errors = [column + epochs for column in columns]
    lost = max(int(np.ceil(np.maximum(error, 0).sum())) for error in errors)
    return lost, max(int(np.ceil(np.maximum(-error, 0).sum())) for error in errors)


# -- recoveries ---------------------------------------------------------------------------------------


def kill_servers(count: int, folder: Path, seed: int) -> dict[str, Any]:
    """Servers 0 and 1 in turn."""
    return _recoveries("recovery_job", folder, role="server", count=count, gap=0.15, spares=0, seed=seed)


def kill_workers(count: int, folder: Path, seed: int) -> dict[str, Any]:
    """PyTorch workers 0 and 1 in turn, one spare standing by."""
    return _recoveries("recovery_job", folder, role="worker", count=count, gap=0.8, spares=1, seed=seed)


def kill_workers_cold(count: int, folder: Path, seed: int) -> dict[str, Any]:
    """The same without a spare: a fresh process each time."""
    return _recoveries("recovery_job", folder, role="worker", count=count, gap=0.3, spares=0, seed=seed)


def kill_keras_workers(count: int, folder: Path, seed: int) -> dict[str, Any]:
    """TensorFlow workers 0 and 1 in turn, one spare standing by."""
    return _recoveries("recovery_keras_job", folder, role="worker", count=count, gap=5.0, spares=1, seed=seed)


def _recoveries(
    name: str, folder: Path, *, role: str, count: int, gap: float, spares: int, seed: int
) -> dict[str, Any]:
    os.environ["BENCHMARK_SPARES"] = str(spares)
    killer = Killer(
        role=role, count=count, gap_seconds=gap, wants_warm=spares > 0, seed=seed,
        done=lambda: _halt(folder / "run"),
    )  # fmt: skip
    killer.start()
    drive(name, folder, killer.hear)
    if killer.problem:
        raise PartFailed(killer.problem)
    # Without a spare none can be warm, and all count; with one, those that found it not ready are told apart.
    chosen = [each for each in killer.recoveries if each.warm or role == "server" or not spares]
    return {
        "serving": [each.serving for each in chosen],
        "working": [each.working for each in chosen],
        "not_warm": [each.working for each in killer.recoveries if each not in chosen],
    }


def _halt(run_dir: Path) -> None:
    send_order(run_dir, Halt())


# -- restart from a checkpoint ------------------------------------------------------------------------


def restart(count: int, folder: Path, seed: int) -> dict[str, Any]:
    """Kill a whole synchronous run and resume it from its checkpoint: seconds from the command to its first step."""
    words = [sys.executable, "-m", "leptonai.cli", "train"]
    words += [str(WORKLOADS / "recovery_job.py"), "--cluster", str(WORKLOADS / "two_workers.yaml")]
    words += ["--run-dir", str(folder / "run"), "--home", str(folder / "home"), "--json", "--no-autotune"]
    environment = {**os.environ, "BENCHMARK_SERVED": "0", "OMP_NUM_THREADS": "1"}
    restarts: list[float] = []
    saves: list[float] = []
    for number in range(count + 1):
        began = time.time()
        first, saved = _until_saved([*words, *(["--resume"] if number else [])], environment, folder, began)
        saves += saved
        if number:
            restarts.append(first - began)
    return {"restart": restarts, "checkpoint": saves}


def _until_saved(
    words: list[str], environment: Mapping[str, str], folder: Path, began: float
) -> tuple[float, list[float]]:
    """Run until two checkpoints were written, then kill all; when its first step ended, and how long they took."""
    from benchmarks.harness import end_tree

    events = folder / "run" / "events.jsonl"
    process = subprocess.Popen(
        words, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        while time.time() < began + RESTART_LIMIT_SECONDS:
            found = _since(events, began)
            first = next((each["at_seconds"] for each in found if each["kind"] == "step_done"), None)
            saved = [each["seconds"] for each in found if each["kind"] == "checkpoint_saved"]
            if first is not None and len(saved) >= 2:
                return first, saved
            if process.poll() is not None:
                raise PartFailed(f"the run ended with exit code {process.returncode}")
            threading.Event().wait(0.02)
    finally:
        end_tree(process)
    raise PartFailed("the run wrote no checkpoint")


def _since(events: Path, began: float) -> list[dict[str, Any]]:
    """Whole events later than ``began``."""
    if not events.exists():
        return []
    found = []
    for line in events.read_text().splitlines():
        try:
            event = json.loads(line)
        except json.JSONDecodeError:  # the end of a line that is being written
            continue
        if event["at_seconds"] >= began:
            found.append(event)
    return found


PARTS: Mapping[str, Callable[[int, Path, int], dict[str, Any]]] = {
    "random": random_kills,
    "servers": kill_servers,
    "workers": kill_workers,
    "cold": kill_workers_cold,
    "keras": kill_keras_workers,
    "restart": restart,
}


def main() -> int:
    """Play the part that the command line names."""
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=list(PARTS))
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--seed", type=int, default=0)
    words = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        report = PARTS[words.part](words.count, Path(folder), words.seed)
    words.report.write_text(json.dumps(report))
    return 0


if __name__ == "__main__":
    sys.exit(main())
