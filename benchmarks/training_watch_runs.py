"""One measurement of :mod:`benchmarks.training_watch`, in a process of its own; writes a report of numbers."""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks import training_watch_machines as machines
from benchmarks.training_watch_curves import SETUPS, alarms, draw_spikes, is_found, train_curve
from benchmarks.training_watch_record_steps import load
from benchmarks.training_watch_stops import stop_ranks
from benchmarks.training_watch_stragglers import judge

RECORDING = Path(__file__).parent / "data" / "training_watch_steps.npz"
CURVE_STEPS, NUM_SPIKES = 10_000, 200
CURVE_SEEDS: tuple[int, ...] = (11, 12)
"""Seeds 1 and 2 were those of development."""
NUM_STRAGGLERS, CLEAN_STEPS, SEED = 500, 10_000, 21
NUM_STOPS = 20
NUM_WINDOWS = 90


def spikes(quick: bool) -> dict[str, float]:
    """Injected spikes found, and alarms on the curves as they are."""
    folder = Path(os.environ["LEPTON_DATA"])
    setups, seeds, steps, wanted = (SETUPS, CURVE_SEEDS, CURVE_STEPS, NUM_SPIKES)
    if quick:
        setups, seeds, steps, wanted = SETUPS[3:4], (CURVE_SEEDS[0],), 1_600, 2
    curves = [train_curve(folder, setup, steps=steps, seed=seed) for seed in seeds for setup in setups]
    random = np.random.default_rng(SEED)
    counts = [wanted // len(curves) + (at < wanted % len(curves)) for at in range(len(curves))]
    drawn = [
        (curve, draw_spikes(curve, count=count, random=random))
        for curve, count in zip(curves, counts, strict=True)
    ]
    found = sum(is_found(curve, spike) for curve, listed in drawn for spike in listed)
    num_false, num_steps = sum(len(list(alarms(curve))) for curve in curves), sum(map(len, curves))
    num_spikes = sum(len(listed) for _, listed in drawn)
    return {
        "spikes": float(num_spikes), "spikes_found": found / num_spikes,
        "spikes_false": 1e5 * num_false / num_steps, "clean_steps": float(num_steps),
    }  # fmt: skip


def stragglers(quick: bool) -> dict[str, float]:
    """Slowed ranks named, and flags in clean steps."""
    recorded = load(RECORDING)
    compute, own = recorded.compute_SR[:CLEAN_STEPS], recorded.exchange_SR[:CLEAN_STEPS]
    if quick:
        compute, own = compute[:800], own[:800]
    share, false = judge(compute, own, num_trials=5 if quick else NUM_STRAGGLERS, seed=SEED)
    wall, _ = judge(
        recorded.wall_SR[: len(compute)], own, num_trials=5 if quick else NUM_STRAGGLERS, seed=SEED
    )
    return {"stragglers_named": share, "straggler_false": float(false), "stragglers_named_wall": wall}


def stops(quick: bool) -> dict[str, float]:
    """Stopped ranks named in time."""
    with tempfile.TemporaryDirectory() as folder:
        found = stop_ranks(Path(folder), count=1 if quick else NUM_STOPS)
    seconds = sorted(each for each, _ in found)
    return {
        "stops_named": float(sum(each <= allowed for each, allowed in found)),
        "stop_seconds_median": seconds[len(seconds) // 2], "stop_seconds_worst": seconds[-1],
    }  # fmt: skip


def odd_machines(quick: bool) -> dict[str, float]:
    """A faulty machine among a thousand."""
    found = machines.judge(
        3 if quick else NUM_WINDOWS, seed=SEED, num_machines=100 if quick else machines.NUM_MACHINES
    )
    return {f"machine_{name}": value for name, value in found.items()}


WHAT = {"spikes": spikes, "stragglers": stragglers, "stops": stops, "machines": odd_machines}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure one thing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training_watch_runs")
    parser.add_argument("--what", choices=sorted(WHAT), required=True)
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--quick", action="store_true")
    words = parser.parse_args(argv)
    words.report.write_text(json.dumps(WHAT[words.what](words.quick)))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
