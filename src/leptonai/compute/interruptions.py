"""What failures take from a run on many devices: how often they come, when to save, what is left for training."""

from __future__ import annotations

from dataclasses import dataclass

from leptonai.compute.prediction import failures
from leptonai.core.errors import InputError

DEVICE_MTBF_SECONDS = 54 * 86400 * 16384 / 419
"""Of one device with its share of a node and network: 419 unexpected interruptions of 16,384 H100 in 54 days.

Source: Llama 3 (2407.21783), table 5."""
NODE_WRITE_BYTES_PER_SECOND = 2e12 / 2048
"""Of one node to shared storage: 2 TB/s sustained for those 2,048 nodes. Source: Llama 3 (2407.21783), 3.3.1."""
RESTART_SECONDS = 600.0
"""From a failure until the lost work begins to be done again: noticing, a spare node, loading. An assumption."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interruptions:
    """What failures cost a run.

    Args:
        mtbf_seconds: mean time between failures of the whole job.
        save_seconds: one checkpoint.
        interval_seconds: work between two checkpoints that loses least.
        goodput: share of the time that trains, in (0, 1].
    """

    mtbf_seconds: float
    save_seconds: float
    interval_seconds: float
    goodput: float


def expected_interruptions(
    *,
    num_devices: int,
    num_nodes: int,
    state_bytes: float,
    device_mtbf_seconds: float = DEVICE_MTBF_SECONDS,
    write_bytes_per_second: float = NODE_WRITE_BYTES_PER_SECOND,
    restart_seconds: float = RESTART_SECONDS,
) -> Interruptions:
    """Failures of a job that any of its devices can stop, saved as often as loses least.

    Args:
        num_devices: >= 1.
        num_nodes: that write a checkpoint together, >= 1.
        state_bytes: of the whole checkpoint: parameters and the optimiser's states.
        device_mtbf_seconds: of one device.
        write_bytes_per_second: of one node.
        restart_seconds: from a failure to work again.

    Raises:
        InputError: a count or rate that is not positive.

    >>> found = expected_interruptions(num_devices=16384, num_nodes=2048, state_bytes=405e9 * 14)
    >>> round(found.mtbf_seconds / 3600, 1), round(found.goodput, 2)
    (3.1, 0.93)
    """
    if min(num_devices, num_nodes) < 1 or not (device_mtbf_seconds > 0 and write_bytes_per_second > 0):
        raise InputError("expected_interruptions: expected counts and rates above 0")
    mtbf = float(failures.mean_seconds_between_failures(device_mtbf_seconds, num_devices))
    save = float(
        failures.checkpoint_seconds(
            state_bytes / num_nodes, num_nodes, writer_bytes_per_second=write_bytes_per_second
        )
    )
    interval = float(failures.daly_interval_seconds(save, mtbf))
    share = float(failures.goodput(interval, save, mtbf, restart_seconds=restart_seconds))
    return Interruptions(mtbf_seconds=mtbf, save_seconds=save, interval_seconds=interval, goodput=share)
