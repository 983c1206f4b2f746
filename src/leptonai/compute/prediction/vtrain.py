"""Measured training steps published with vTrain, as layouts of problems, and which of them calibrate the model.

Source: Bang et al. 2024, "vTrain" (2312.12391), github VIA-Research/vTrain at f8dda84; A100-80GB, Megatron-DeepSpeed
with full recomputation, 1F1B and no gradient buckets.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from leptonai.compute.prediction.layouts import Layout
from leptonai.compute.prediction.machine import Accelerator, Level, Machine
from leptonai.compute.transformer import Transformer
from leptonai.core.errors import InputError

SINGLE_FILE, MULTI_FILE = "measured_single_node.csv", "measured_multi_node.csv"
VOCABULARY = 51200
"""GPT-2's 50,257 tokens padded as Megatron pads them for eight tensor devices (2104.04473, table 1)."""
NUM_MULTI_ROWS = 6
"""Multi-node rows that calibrate: with one row of each of the 32 single-node cells, 38 of 761, which is 5 per cent."""
_TABLE_SIZES = 48
_GOLDEN_RATIO = (5**0.5 - 1) / 2
GPUS_PER_NODE = 8
A100 = Accelerator(
    name="A100-80GB", peak_flops=312e12, memory_bytes=80 * 2**30, memory_bandwidth_bytes_per_second=2.039e12,
    power_watts=400,
)  # fmt: skip
"""NVIDIA A100 80 GB SXM data sheet, June 2021: dense BF16, HBM2e, TDP."""
NVLINK_BYTES_PER_SECOND = 300e9
"""One way: twelve third-generation links of 25 GB/s (the same data sheet)."""
NVLINK_LATENCY_SECONDS = 15e-6
"""Of the vTrain all-reduce tables: about 30 microseconds for each doubling of the ranks."""
INFINIBAND_BYTES_PER_SECOND = 100e9
"""Of a node of vTrain's cluster, one way: four HDR adapters of 200 Gbit/s (2312.12391, section 4)."""
INFINIBAND_LATENCY_SECONDS = 5e-6
"""Of a message between nodes, through NCCL (a switch hop is 130 ns, a host's part several microseconds)."""


@dataclass(frozen=True, slots=True)
class Row:
    """One measured step.

    Args:
        model: what was trained.
        num_gpus: on how many devices.
        global_batch: examples of a step.
        layout: how.
        seconds: measured.
    """

    model: Transformer
    num_gpus: int
    global_batch: int
    layout: Layout
    seconds: float


def find_vtrain(folders: Sequence[Path]) -> Path:
    """The folder of the tables, in the first of these folders that has ``planner/vtrain``.

    Raises:
        InputError: none has.
    """
    for folder in folders:
        found = folder / "planner" / "vtrain"
        if (found / SINGLE_FILE).is_file() and (found / MULTI_FILE).is_file():
            return found
    looked = ", ".join(str(folder) for folder in folders) or "LEPTON_DATA is not set"
    raise InputError(
        f"the measured steps of vTrain are not on this machine ({looked})",
        hint="set LEPTON_DATA to a folder that holds planner/vtrain/measured_single_node.csv, measured_multi_node.csv "
        "and allreduce_a100_{2,4,8}gpu.txt (github VIA-Research/vTrain, data/ and trace/)",
    )


def read_rows(path: Path) -> list[Row]:
    """Rows of one table.

    Raises:
        InputError: a column is missing or not a number.
    """
    with path.open(newline="") as file:
        return [
            _row(values, f"{path.name}, row {line}") for line, values in enumerate(csv.DictReader(file), 2)
        ]


def _row(values: dict[str, str], where: str) -> Row:
    try:
        model = Transformer(
            num_layers=int(values["# layers"]), hidden=int(values["hidden size"]),
            num_heads=int(values["attention heads"]), sequence=int(values["sequence length"]), vocabulary=VOCABULARY,
        )  # fmt: skip
        layout = Layout(
            tensor=int(values["tensor parallelism"]), data=int(values["data parallelism"]),
            pipeline=int(values["pipeline parallelism"]), micro_batch=int(values["micro batch"]), recompute="full",
        )  # fmt: skip
        return Row(
            model,
            layout.num_devices,
            int(values["global batch"]),
            layout,
            float(values["iteration time (ms)"]) / 1e3,
        )
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"{where}: expected the columns of vTrain's tables as numbers, found {error}"
        ) from error


def read_all_reduces(folder: Path) -> tuple[tuple[int, tuple[float, ...], tuple[float, ...]], ...]:
    """Measured all-reduces in a node: devices, bytes, seconds (out of place), as ``Level`` takes them.

    Raises:
        InputError: a table is missing.
    """
    tables = []
    for num_devices in (2, 4, 8):
        path = folder / f"allreduce_a100_{num_devices}gpu.txt"
        try:
            lines = [line.split(",") for line in path.read_text().splitlines()[1:] if line.strip()]
        except OSError as error:
            raise InputError(f"{path}: cannot be read ({error.strerror})") from error
        # A thousand equal steps of size hold no more than steps of equal ratio do, and are slow to search.
        places = sorted({round(ratio) - 1 for ratio in np.geomspace(1, len(lines), _TABLE_SIZES)})
        sizes = tuple(float(lines[place][0]) for place in places)
        tables.append((num_devices, sizes, tuple(float(lines[place][3]) / 1e9 for place in places)))
    return tuple(tables)


def machine_of(
    num_gpus: int, tables: tuple[tuple[int, tuple[float, ...], tuple[float, ...]], ...]
) -> Machine:
    """vTrain's cluster with as many devices as asked for."""
    num_nodes = -(-num_gpus // GPUS_PER_NODE)
    return Machine(
        device=A100, devices_per_node=GPUS_PER_NODE, num_nodes=num_nodes,
        in_node=Level(
            bandwidth_bytes_per_second=NVLINK_BYTES_PER_SECOND, latency_seconds=NVLINK_LATENCY_SECONDS,
            measured_all_reduces=tables,
        ),
        between_nodes=Level(
            bandwidth_bytes_per_second=INFINIBAND_BYTES_PER_SECOND, latency_seconds=INFINIBAND_LATENCY_SECONDS
        ),
    )  # fmt: skip


def calibration_rows(
    single: Sequence[Row], multi: Sequence[Row], *, num_multi: int = NUM_MULTI_ROWS
) -> tuple[list[int], list[int]]:
    """Places of the rows that calibrate, chosen by layouts alone: times are never looked at.

    In a node: one row of each (hidden, tensor, micro-batch); of the cell's rows in order of (pipeline, layers, devices,
    global batch), the one at the fractional part of cell number times the golden ratio, so that the cells together
    spread over depths and numbers of micro-batches. Between nodes: of the rows in order of (hidden, tensor, data,
    pipeline, micro-batch), ``num_multi`` at equal distances.
    """
    cells: dict[tuple[int, int, int], list[int]] = defaultdict(list)
    for place, row in enumerate(single):
        cells[row.model.hidden, row.layout.tensor, row.layout.micro_batch].append(place)
    chosen = []
    for number, (_, places) in enumerate(sorted(cells.items())):
        places.sort(
            key=lambda place: (
                single[place].layout.pipeline, single[place].model.num_layers, single[place].num_gpus,
                single[place].global_batch,
            )
        )  # fmt: skip
        chosen.append(places[int((number + 1) * _GOLDEN_RATIO % 1 * len(places))])
    order = sorted(
        range(len(multi)),
        key=lambda place: (
            multi[place].model.hidden, multi[place].layout.tensor, multi[place].layout.data,
            multi[place].layout.pipeline, multi[place].layout.micro_batch,
        ),
    )  # fmt: skip
    count = min(num_multi, len(order))
    return chosen, [order[int((number + 0.5) * len(order) / count)] for number in range(count)]
