"""Sums over workers through torch.distributed: gloo between CPUs, NCCL between GPUs."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from numpy.typing import NDArray

from leptonai.core.errors import Fault
from leptonai.training.loopback import LOOPBACK_ENVIRONMENT

# A group is formed by workers that are all ready; who dies in that moment must not hold the others up for long.
JOIN_TIMEOUT = datetime.timedelta(seconds=20)
# The supervisor notices a lost worker long before; this only bounds the wait without one.
TIMEOUT = datetime.timedelta(minutes=30)


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
        before = _sockets()
        try:
            dist.init_process_group(
                backend="gloo" if backend == "gloo" else "cpu:gloo,cuda:nccl",
                store=dist.FileStore(  # type: ignore[attr-defined]
                    str(rendezvous), num_workers
                ),
                rank=rank,
                world_size=num_workers,
                timeout=JOIN_TIMEOUT,
            )
            dist.distributed_c10d._set_pg_timeout(TIMEOUT)
        except RuntimeError as error:
            raise Fault(f"worker {rank} could not join the others: {error}") from error
        self._sockets = {fd: name for fd, name in _sockets().items() if before.get(fd) != name}

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

    def spread(self, values: NDArray[Any], *, source: int) -> None:
        """Replace ``values`` on every worker by those of the worker ``source``, in place."""
        dist.broadcast(torch.from_numpy(values), src=source)

    def close(self) -> None:
        """Leave the group, so that those who still wait for this worker in it learn that it is gone."""
        # Destroying the group leaves gloo's connections open, and who waits on one would wait on.
        found = _sockets()
        for fd, name in self._sockets.items():
            if found.get(fd) == name:
                _shut_down(fd)
        dist.destroy_process_group()


def _sockets() -> dict[int, str]:
    """This process's open sockets, each with the kernel's own number, as a descriptor may be used again."""
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            name = os.readlink(f"/proc/self/fd/{entry}")
            if name.startswith("socket:"):
                found[int(entry)] = name
    return found


def _shut_down(fd: int) -> None:
    """End a connection under its owner's feet; a listening socket is left alone, as gloo aborts on it."""
    # gloo may close it first; then there is nothing left to end.
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(fd)) as connection:
        connection.getpeername()
        connection.shutdown(socket.SHUT_RDWR)
