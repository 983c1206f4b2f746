"""Sums over workers through torch.distributed: gloo between CPUs, NCCL between GPUs."""

from __future__ import annotations

import datetime
import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from numpy.typing import NDArray

from leptonai.core.errors import Fault
from leptonai.training.loopback import LOOPBACK_ENVIRONMENT


class TorchExchange:
    """The process group of one gang; satisfies :class:`leptonai.training.learner.Exchange`.

    Args:
        rendezvous: a file only this gang uses. A file, because torch's TCP store listens on all addresses.
        backend: ``gloo``, or ``nccl`` for gradients on GPUs (small sums still go through gloo).
    """

    def __init__(self, *, rank: int, num_workers: int, rendezvous: Path, backend: str) -> None:
        missing = [name for name in LOOPBACK_ENVIRONMENT if name not in os.environ]
        if missing:
            raise Fault(f"a worker would listen beyond loopback: {', '.join(missing)} is not set")
        self._rank, self._num_workers = rank, num_workers
        try:
            dist.init_process_group(
                backend="gloo" if backend == "gloo" else "cpu:gloo,cuda:nccl",
                store=dist.FileStore(  # type: ignore[attr-defined]
                    str(rendezvous), num_workers
                ),
                rank=rank,
                world_size=num_workers,
                # The supervisor notices a lost worker long before; this only bounds the wait without one.
                timeout=datetime.timedelta(minutes=30),
            )
        except RuntimeError as error:
            raise Fault(f"worker {rank} could not join the others: {error}") from error

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def num_workers(self) -> int:
        return self._num_workers

    def sum(self, values: NDArray[Any]) -> None:
        dist.all_reduce(torch.from_numpy(values))

    def broadcast(self, values: NDArray[Any]) -> None:
        dist.broadcast(torch.from_numpy(values), src=0)

    def close(self) -> None:
        """Leave the group."""
        dist.destroy_process_group()
