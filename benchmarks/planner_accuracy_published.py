"""Published step times of Megatron-LM, predicted with the constants fitted elsewhere."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

from benchmarks.harness import ROOT
from leptonai.compute.prediction import vtrain
from leptonai.compute.prediction.calibration import Calibration
from leptonai.compute.prediction.layouts import Layout, Layouts
from leptonai.compute.prediction.machine import Accelerator, Level, Machine
from leptonai.compute.prediction.transformer_step import TransformerPredictor
from leptonai.compute.transformer import Transformer

GOLDEN = ROOT / "tests" / "golden" / "planner_step_times.json"
SELENE_BYTES_PER_SECOND = 200e9
"""Of a node, one way: eight HDR adapters of 200 Gbit/s (2104.04473, section 5)."""
H100 = Accelerator(
    name="H100-SXM", peak_flops=989.4e12, memory_bytes=80 * 2**30, memory_bandwidth_bytes_per_second=3.35e12,
    power_watts=700,
)  # fmt: skip
"""NVIDIA H100 SXM data sheet, 2023: dense BF16, HBM3, TDP."""
H100_NVLINK_BYTES_PER_SECOND = 450e9
"""One way: eighteen fourth-generation links of 25 GB/s (the same data sheet)."""
H100_NODE_BYTES_PER_SECOND = 400e9
"""Of a node, one way: eight NDR adapters of 400 Gbit/s (NVIDIA DGX H100 data sheet)."""
H100_MULTIPROCESSORS = 132

Tables = tuple[tuple[int, tuple[float, ...], tuple[float, ...]], ...]


def published_errors(calibration: Calibration, tables: Tables) -> dict[str, list[float]]:
    """Absolute errors in per cent of every published row, by table."""
    tables_of = json.loads(GOLDEN.read_text())
    names = ("megatron_a100", "korthikanti", "megatron_h100")
    return {
        name: [
            100 * abs(mine / theirs - 1) for mine, theirs in pairs(name, tables_of[name], calibration, tables)
        ]
        for name in names
    }


def pairs(
    name: str, table: dict[str, Any], calibration: Calibration, tables: Tables
) -> list[tuple[float, float]]:
    """Predicted and published seconds of each row of a golden table."""
    rows = [dict(zip(table["columns"], row, strict=True)) for row in table["rows"]]
    if name == "korthikanti":
        return [pair for row in rows for pair in _korthikanti(table, row, calibration, tables)]
    best = _best_h100 if name == "megatron_h100" else _best_a100
    return [(best(table, row, calibration, tables), float(row["seconds"])) for row in rows]


def selene(num_devices: int, tables: Tables) -> Machine:
    """The machine of the A100 papers; its nodes are those whose all-reduces were measured."""
    machine = vtrain.machine_of(num_devices, tables)
    between = replace(machine.between_nodes, bandwidth_bytes_per_second=SELENE_BYTES_PER_SECOND)
    return replace(machine, between_nodes=between)


def h100s(num_devices: int) -> Machine:
    """Nodes of eight H100, from data sheets alone."""
    return Machine(
        device=H100, devices_per_node=8, num_nodes=-(-num_devices // 8),
        in_node=Level(
            bandwidth_bytes_per_second=H100_NVLINK_BYTES_PER_SECOND, latency_seconds=vtrain.NVLINK_LATENCY_SECONDS
        ),
        between_nodes=Level(
            bandwidth_bytes_per_second=H100_NODE_BYTES_PER_SECOND, latency_seconds=vtrain.INFINIBAND_LATENCY_SECONDS
        ),
    )  # fmt: skip


def _model(table: dict[str, Any], row: dict[str, Any]) -> Transformer:
    return Transformer(
        num_layers=row["num_layers"], hidden=row["hidden"], num_heads=row["num_heads"], sequence=table["sequence"],
        vocabulary=table["vocabulary"],
    )  # fmt: skip


def _best_a100(table: dict[str, Any], row: dict[str, Any], calibration: Calibration, tables: Tables) -> float:
    num_devices = row["tensor"] * row["pipeline"] * row["data"]
    predictor = TransformerPredictor(
        _model(table, row),
        selene(num_devices, tables),
        global_batch=row["global_batch"],
        calibration=calibration,
    )
    return _best(predictor, row, (1, 2, 4, 8), "full")


def _best_h100(table: dict[str, Any], row: dict[str, Any], calibration: Calibration, tables: Tables) -> float:
    """Fused attention, so nothing is recomputed; gradients overlap, as that table's runs did."""
    num_devices = row["tensor"] * row["pipeline"] * row["data"]
    predictor = TransformerPredictor(
        _model(table, row), h100s(num_devices), global_batch=row["global_batch"], fused_attention=True,
        overlap_gradients=True, calibration=replace(calibration, num_multiprocessors=H100_MULTIPROCESSORS),
    )  # fmt: skip
    return _best(predictor, row, (1, 2, 4), "none")


def _best(
    predictor: TransformerPredictor, row: dict[str, Any], micro_batches: tuple[int, ...], recompute: str
) -> float:
    """The predicted best of the micro-batches that fit; of all if none does."""
    layouts = Layouts.of(
        [
            Layout(
                tensor=row["tensor"], pipeline=row["pipeline"], data=row["data"], micro_batch=micro_batch,
                recompute=recompute, sequence_parallel=recompute == "none" and row["tensor"] > 1,
            )
            for micro_batch in micro_batches
        ]
    )  # fmt: skip
    found = predictor.predict(layouts)
    able = found.reasons == 0
    return float(found.step_seconds[able].min() if able.any() else found.step_seconds.min())


def _korthikanti(
    table: dict[str, Any], row: dict[str, Any], calibration: Calibration, tables: Tables
) -> list[tuple[float, float]]:
    machine = selene(row["tensor"] * row["pipeline"], tables)
    predictor = TransformerPredictor(
        _model(table, row), machine, global_batch=row["global_batch"], calibration=calibration
    )
    full = Layout(
        tensor=row["tensor"], pipeline=row["pipeline"], interleave=row["interleave"],
        micro_batch=row["micro_batch"], recompute="full",
    )  # fmt: skip
    layouts = Layouts.of([full, replace(full, recompute="selective", sequence_parallel=True)])
    found = predictor.predict(layouts).step_seconds.tolist()
    return list(zip(found, (row["full_seconds"], row["sequence_and_selective_seconds"]), strict=True))
