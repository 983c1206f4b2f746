"""A faulty machine among a thousand simulated ones: precision, F1 and time of the comparison with peers.

A window has values of ten signals of each machine at sixty steps. Machines differ from each other by a constant of
deviation 1 (the unit), all follow one course of the job, and each has noise of its own with a memory and heavy tails.
In two windows of three one machine has a fault: a kind moves the signals that it moves on real machines (Minder,
2411.01791, table 1; the fault mix of Llama 3's report), by 0.5 to 3 units, from a step on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from leptonai.operations.detect.peers import odd_ones

SIGNALS = (
    "processor", "memory", "accelerator load", "accelerator memory", "power", "heat", "clock", "sent", "received",
    "pauses",
)  # fmt: skip
KINDS: Mapping[str, Mapping[str, float]] = {
    "accelerator memory errors": {"accelerator load": -1.0, "power": -0.6, "sent": -0.5, "received": -0.5},
    "slow bus": {"pauses": 1.0, "sent": -0.7, "received": -0.7, "accelerator load": -0.4},
    "network adapter": {"sent": -1.0, "received": -1.0, "pauses": 0.6},
    "lost accelerator": {"accelerator load": -1.0, "accelerator memory": -1.0, "power": -1.0, "heat": -0.6},
    "heat": {"heat": 1.0, "clock": -0.8, "power": -0.4},
    "busy processor": {"processor": 1.0, "accelerator load": -0.5, "memory": 0.4},
    "link": {"received": -0.8, "sent": -0.6, "pauses": 1.0},
    "host memory": {"memory": 1.0, "processor": 0.4},
}
NUM_MACHINES, NUM_STEPS = 1000, 60
NOISE, MEMORY, FREEDOM = 0.3, 0.5, 5.0
"""Deviation of a machine's noise, in units of the spread between machines; its memory from step to step; its tails
(Student's t)."""
EFFECT = (0.5, 3.0)
FIRST_STEP = (10, 45)
FAULT_SHARE = 2.0 / 3.0


def window(
    random: np.random.Generator, *, num_machines: int = NUM_MACHINES
) -> tuple[NDArray[np.float64], int | None]:
    """Values (machines, signals, steps) and the faulty machine, if one is."""
    shape = (num_machines, len(SIGNALS), NUM_STEPS)
    noise = random.standard_t(FREEDOM, shape) / np.sqrt(FREEDOM / (FREEDOM - 2.0))
    for step in range(1, NUM_STEPS):
        noise[..., step] = MEMORY * noise[..., step - 1] + np.sqrt(1.0 - MEMORY**2) * noise[..., step]
    course = np.cumsum(random.normal(0.0, 0.3, (len(SIGNALS), NUM_STEPS)), axis=1)
    values = random.normal(size=(num_machines, len(SIGNALS), 1)) + course + NOISE * noise
    if random.random() >= FAULT_SHARE:
        return values, None
    faulty, begin = int(random.integers(num_machines)), int(random.integers(*FIRST_STEP))
    kind = list(KINDS)[int(random.integers(len(KINDS)))]
    size = random.uniform(*EFFECT)
    for signal, weight in KINDS[kind].items():
        values[faulty, SIGNALS.index(signal), begin:] += size * weight
    return values, faulty


def judge(num_windows: int, *, seed: int, num_machines: int = NUM_MACHINES) -> dict[str, float]:
    """Precision, recall, F1 over windows, and the median time of one."""
    random = np.random.default_rng(seed)
    hits = wrong = missed = 0
    seconds = []
    for _ in range(num_windows):
        values, faulty = window(random, num_machines=num_machines)
        began = time.perf_counter()
        named = [each.machine for each in odd_ones(values)]
        seconds.append(time.perf_counter() - began)
        hits += faulty in named
        missed += faulty is not None and faulty not in named
        wrong += sum(each != faulty for each in named)
    precision, recall = hits / max(1, hits + wrong), hits / max(1, hits + missed)
    f1 = 2.0 * precision * recall / max(1e-12, precision + recall)
    return {"precision": precision, "recall": recall, "f1": f1, "seconds": float(np.median(seconds))}
