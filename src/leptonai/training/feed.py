"""This worker's micro-batches, step by step: its share of each global batch, augmented and prepared."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator

import numpy as np

from leptonai.training.data.dataset import ArrayColumn, Data
from leptonai.training.data.draws import Draws
from leptonai.training.data.order import Order
from leptonai.training.data.prefetch import prefetched
from leptonai.training.job import TrainJob
from leptonai.training.learner import Batch, shares
from leptonai.training.step_method import Sampler

# Mapped files smaller than this are soon in the page cache, where a thread of their own only costs.
LARGE_BYTES = 4 * 2**30


class Feed:
    """What each worker computes on in each step, by (step, rank, number of workers) alone.

    Args:
        job: names seed, global batch size and accumulation.
        data: the examples.
        sampler: chooses them; None: the job's own order.
    """

    def __init__(self, job: TrainJob, data: Data, sampler: Sampler | None = None) -> None:
        self._job, self._data = job, data
        self._order: Sampler = sampler or Order(
            seed=job.seed,
            num_examples=len(data.train),
            global_batch_size=job.global_batch_size,
            shuffle=job.shuffle,
        )

    def batches(
        self, steps: range, *, rank: int, num_workers: int
    ) -> Generator[tuple[list[Batch], int], None, None]:
        """The worker's micro-batches of each step, with the size of the global batch; close it when done early."""
        prepared = (self._micro_batches(step, rank, num_workers) for step in steps)
        depth = _prefetch_depth(self._job, self._data)
        if not depth:
            yield from prepared
            return
        with prefetched(prepared, depth) as ahead:
            yield from ahead

    def _micro_batches(self, step: int, rank: int, num_workers: int) -> tuple[list[Batch], int]:
        chosen = self._order.batch(step)
        total = len(chosen.indices)
        share = shares(total, num_workers)[rank]
        mine = chosen.indices[share]
        if not len(mine):
            return [], total
        draws = Draws(seed=self._job.seed, epoch=chosen.epoch, step=step, num_examples=total, share=share)
        batch = self._data.training_batch(mine, draws)
        cuts = shares(len(mine), min(self._job.accumulate, len(mine)))
        return [tuple(column[cut] for column in batch) for cut in cuts], total

    def evaluation(self, *, rank: int, num_workers: int) -> Iterator[Batch]:
        """The worker's share of the evaluation set, in order."""
        examples = self._data.evaluate
        assert examples is not None
        share = shares(len(examples), num_workers)[rank]
        size = self._job.evaluate.batch_size
        for begin in range(share.start, share.stop, size):
            indices = np.arange(begin, min(begin + size, share.stop), dtype=np.int64)
            yield self._data.evaluation_batch(indices)


def _prefetch_depth(job: TrainJob, data: Data) -> int:
    """Batches to prepare ahead: those asked for, else two where examples come from a disk larger than memory."""
    if job.speed.prefetch is not None:
        return job.speed.prefetch
    for column in data.train.columns:
        in_memory = isinstance(column, ArrayColumn) and not isinstance(column.array, np.memmap)
        size_bytes = len(column) * column.dtype.itemsize * math.prod(column.shape)
        if not in_memory and size_bytes > LARGE_BYTES:
            return 2
    return 0
