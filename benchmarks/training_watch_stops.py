"""A rank of a real run is stopped (SIGSTOP) again and again: after how long is it named?"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.contestants import own_python

FLOOR_SECONDS, STEP_FACTOR = 5.0, 3.0
"""The time allowed: the longer of five seconds and three times the 99th percentile of the step times."""
PATIENCE_SECONDS = 60.0
STOPS_A_RUN = 5
"""A run that loses more workers than it does work is ended, as it should be."""
JOB = """
import time
import numpy as np
from torch import nn
from leptonai import SGD, Arrays, Data, Elastic, Speed, TrainJob

inputs = np.random.default_rng(1).normal(size=(4096, 16)).astype(np.float32)
labels = (inputs[:, 0] > 0).astype(np.int64)


class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(16, 2)

    def forward(self, values):
        time.sleep(0.02)
        return self.inner(values)


job = TrainJob(
    model=Slow, data=lambda: Data(train=Arrays(inputs, labels)), loss="cross_entropy", optimizer=SGD(lr=0.1),
    epochs=100_000, global_batch_size=64, seed=1, speed=Speed(log_every_seconds=0.05), elastic=Elastic(spare=0),
)
"""


def stop_ranks(folder: Path, *, count: int) -> list[tuple[float, float]]:
    """Seconds until the stopped rank was named (infinite: it was not), and seconds allowed, for each stop."""
    found: list[tuple[float, float]] = []
    while len(found) < count:
        inner = folder / f"run-{len(found)}"
        inner.mkdir()
        found += _stops_of_a_run(inner, min(STOPS_A_RUN, count - len(found)))
    return found


def _stops_of_a_run(folder: Path, count: int) -> list[tuple[float, float]]:
    (folder / "job.py").write_text(JOB)
    (folder / "cluster.yaml").write_text("nodes:\n  - name: here\nworkers: 2\n")
    words = ["train", "job.py", "--cluster", "cluster.yaml", "--run-dir", "run", "--home", "home"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [str(own_python()), "-m", "leptonai.cli", *words], cwd=folder, env=environment, stdout=log,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            return [_stop(folder / "run" / "events.jsonl", process, turn % 2) for turn in range(count)]
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _stop(journal: Path, process: subprocess.Popen[bytes], rank: int) -> tuple[float, float]:
    begun = len(_events(journal))
    until = time.monotonic() + PATIENCE_SECONDS
    while sum(each["kind"] == "step_done" for each in _events(journal)[begun:]) < 20:
        if time.monotonic() > until or process.poll() is not None:
            return float("inf"), 0.0
        time.sleep(0.05)
    events = _events(journal)
    pid = [each["pid"] for each in events if each["kind"] == "worker_started" and each["rank"] == rank][-1]
    steps = [each for each in events if each["kind"] == "step_done"]
    pace = sorted(_pace(steps))
    allowed = max(FLOOR_SECONDS, STEP_FACTOR * pace[int(0.99 * (len(pace) - 1))])
    stopped = time.monotonic()
    os.kill(pid, signal.SIGSTOP)
    seen = len(events)
    while time.monotonic() - stopped < PATIENCE_SECONDS:
        if any(_names(each, rank) for each in _events(journal)[seen:]):
            return time.monotonic() - stopped, allowed
        time.sleep(0.02)
    os.kill(pid, signal.SIGCONT)
    return float("inf"), allowed


def _names(event: dict[str, Any], rank: int) -> bool:
    return (
        event["kind"] == "alarm_raised"
        and event["alarm"] == "hang"
        and event["subject"] == f"rank {rank}"
        and not event["over"]
    )


def _pace(steps: list[dict[str, Any]]) -> Iterator[float]:
    before = 0
    for each in steps:
        yield each["seconds"] / max(1, each["step"] - before)
        before = each["step"]


def _events(journal: Path) -> list[dict[str, Any]]:
    if not journal.exists():
        return []
    lines = journal.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]
