"""A page of memory shared by a gang, in which each worker notes where it is; costs nothing per step.

The launcher reads it to tell a hung worker from a slow one, without a message per step.
"""

from __future__ import annotations

import mmap
import os
import struct
import time
from dataclasses import dataclass
from typing import Literal

_SLOT = struct.Struct("<QQQ")
_SLOT_BYTES = 64  # one cache line each, so that writers do not disturb one another

MOST_WORKERS = 64  # one page of memory

Phase = Literal["starting", "computing", "exchanging", "pausing"]
_PHASES: tuple[Phase, ...] = ("starting", "computing", "exchanging", "pausing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """Where one worker is: ``step`` steps done, in ``phase`` since ``since_seconds`` (monotonic)."""

    rank: int
    step: int
    phase: Phase
    since_seconds: float


class ProgressPage:
    """The page itself; ``fd`` is passed to the workers, who attach by it.

    It has room for more workers than it begins with: at least :data:`MOST_WORKERS`.

    ``pausing`` is a phase without deadline: saving, evaluating, waiting for an answer.
    """

    def __init__(self, fd: int, num_workers: int) -> None:
        self.fd = fd
        self.num_workers = num_workers
        self._memory = mmap.mmap(fd, os.fstat(fd).st_size)

    @classmethod
    def create(cls, num_workers: int) -> ProgressPage:
        """A fresh page in anonymous memory (memfd: it vanishes with its last holder)."""
        fd = os.memfd_create("lepton-progress", os.MFD_CLOEXEC)
        os.ftruncate(fd, max(num_workers, MOST_WORKERS) * _SLOT_BYTES)
        page = cls(fd, num_workers)
        for rank in range(num_workers):
            page.note(rank, 0, "starting")
        return page

    def note(self, rank: int, step: int, phase: Phase) -> None:
        """Worker ``rank`` says where it is."""
        _SLOT.pack_into(self._memory, rank * _SLOT_BYTES, step, _PHASES.index(phase), time.monotonic_ns())

    def read(self) -> list[Progress]:
        """Where the workers of ranks below ``num_workers`` are."""
        found = []
        for rank in range(self.num_workers):
            step, phase, since = _SLOT.unpack_from(self._memory, rank * _SLOT_BYTES)
            found.append(Progress(rank=rank, step=step, phase=_PHASES[phase % 4], since_seconds=since / 1e9))
        return found

    def close(self) -> None:
        """Give the page up on this side."""
        self._memory.close()
        os.close(self.fd)
