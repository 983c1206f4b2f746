"""One run of ``planner_speed``: cost a whole space of layouts, in its order or shuffled, or search it.

``python -m benchmarks.planner_speed_runs --report FILE --what costing|shuffled|search [--quick]``

Seconds are processor time of the process, from a fresh start, so that first calls and their caches count; the
imports before them do not.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from leptonai.compute.prediction.layouts import COLUMNS, CONSISTENCY, Layouts
from leptonai.compute.prediction.machine import Accelerator, Level, Machine
from leptonai.compute.prediction.outcome import Predictions
from leptonai.compute.prediction.transformer_step import TransformerPredictor
from leptonai.compute.search.answer import describe
from leptonai.compute.search.search import search
from leptonai.compute.search.space import CHUNK_ROWS, Space, chunks, count
from leptonai.compute.search.transformers import transformer_space
from leptonai.compute.transformer import Transformer

GLOBAL_BATCH = 3072
"""Examples of one step: 6.3 million tokens."""
MODEL = Transformer(num_layers=40, hidden=5120, num_heads=40, sequence=2048, vocabulary=51200)
"""The 13B model."""
MACHINE = Machine(
    device=Accelerator(
        name="A100-80GB", peak_flops=312e12, memory_bytes=80e9, memory_bandwidth_bytes_per_second=2.039e12,
        power_watts=400.0,
    ),
    devices_per_node=8,
    num_nodes=8,
    in_node=Level(bandwidth_bytes_per_second=300e9, latency_seconds=15e-6),
    between_nodes=Level(bandwidth_bytes_per_second=100e9, latency_seconds=20e-6),
    price_per_device_hour=4.0,
)  # fmt: skip
"""Data sheet of the A100-80GB SXM (NVLink 3, four 200 Gb/s links a node); the price is a round number."""
SHUFFLE_SEED = 5
QUICK_BATCH = 2


def space_of(*, quick: bool) -> Space:
    """The whole space: any whole nodes and parts of one, all consistency modes; a quick one has a tiny batch."""
    return transformer_space(
        MODEL,
        MACHINE,
        QUICK_BATCH if quick else GLOBAL_BATCH,
        fewer_devices=True,
        consistency=("bsp",) if quick else CONSISTENCY,
    )


def shuffled(space: Space) -> list[Layouts]:
    """The same layouts in random order, so that the rows of a chunk share as little as they can."""
    parts = list(chunks(space))
    order = np.random.default_rng(SHUFFLE_SEED).permutation(sum(map(len, parts)))
    columns = {name: np.concatenate([getattr(part, name) for part in parts])[order] for name in COLUMNS}
    whole = Layouts(**columns)
    return [whole.take(slice(start, start + CHUNK_ROWS)) for start in range(0, len(whole), CHUNK_ROWS)]


def check(predictions: Predictions) -> None:
    """That every row has a time, a memory, a price and an energy."""
    assert predictions.price is not None
    for column in (
        predictions.step_seconds, predictions.memory_bytes, predictions.price, predictions.energy_joules,
    ):  # fmt: skip
        assert np.isfinite(column).all()
        assert (column > 0).all()


def costing(*, quick: bool, in_order: bool) -> dict[str, float | str]:
    """Cost every layout of the space, none pruned; making the layouts counts where they come in order."""
    space = space_of(quick=quick)
    predictor = TransformerPredictor(MODEL, MACHINE, global_batch=QUICK_BATCH if quick else GLOBAL_BATCH)
    source: Iterator[Layouts] = chunks(space) if in_order else iter(shuffled(space))
    rows, seconds = 0, 0.0
    while True:
        started = time.process_time()
        layouts = next(source, None)
        predictions = None if layouts is None else predictor.predict(layouts)
        seconds += time.process_time() - started
        if predictions is None:
            break
        check(predictions)
        rows += len(predictions)
    return {"costed": rows, "seconds": seconds, "layouts": count(space)}


def searching(*, quick: bool) -> dict[str, float | str]:
    """Search the space for the fastest layout."""
    batch = QUICK_BATCH if quick else GLOBAL_BATCH
    started = time.process_time()
    predictor = TransformerPredictor(MODEL, MACHINE, global_batch=batch)
    result = search(space_of(quick=quick), predictor, memory_limit_bytes=MACHINE.device.memory_bytes)
    seconds = time.process_time() - started
    best = f"{describe(result.best.layout)}: {result.best.step_seconds:.2f} s a step"
    said = f"{result.num_layouts:,} layouts, {result.num_costed:,} fit and were costed; front of {len(result.front)}"
    return {
        "costed": result.num_costed,
        "seconds": seconds,
        "layouts": result.num_layouts,
        "note": f"{said}; best: {best}",
    }


def main() -> None:
    """Do one run and write its report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--report", type=Path, required=True)
    parser.add_argument("--what", choices=("costing", "shuffled", "search"), required=True)
    parser.add_argument("--quick", action="store_true")
    words = parser.parse_args()
    if words.what == "search":
        report = searching(quick=words.quick)
    else:
        report = costing(quick=words.quick, in_order=words.what == "costing")
    words.report.write_text(json.dumps(report))


if __name__ == "__main__":
    main()
