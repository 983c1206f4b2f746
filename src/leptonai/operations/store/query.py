"""From tiers to an answer: which tier serves which part of a query, joined and brought to the query's step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from leptonai.operations.series import Series
from leptonai.operations.store.block import Block
from leptonai.operations.store.limits import RESOLUTION_MS, TIERS, Tier
from leptonai.operations.store.rollup import Rows, between, join, roll_up

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Selected:
    """One series of an answer; all columns are equally long and ascend in time.

    Args:
        series: which.
        times_ms: of the samples; with a step, where each stretch begins.
        values: samples with their bits; with a step, the last of each stretch.
        minima, maxima: with a step, the extremes of each stretch (NaN: nothing but NaN in it); else the values.
        sums, counts: of the samples that are not NaN; their ratio is the mean.
        tiers: where the rows came from, the finest first; samples not yet cut into chunks are raw.
    """

    series: Series
    times_ms: Ints
    values: Floats
    minima: Floats
    maxima: Floats
    sums: Floats
    counts: Floats
    tiers: tuple[Tier, ...]


def tiers_for(step_ms: int | None) -> Sequence[Tier]:
    """Tiers in the order in which they are asked: the coarsest that the step allows, coarser ones, finer ones.

    >>> tiers_for(60_000), tiers_for(None), tiers_for(90_000)
    (['minute', 'hour', 'raw'], ['raw'], ['raw', 'minute', 'hour'])
    """
    if step_ms is None:
        return ["raw"]
    fit = max(
        number
        for number, tier in enumerate(TIERS)
        if not RESOLUTION_MS[tier] or not step_ms % RESOLUTION_MS[tier]
    )
    return [*TIERS[fit:], *reversed(TIERS[:fit])]


def answer(
    series: Series,
    series_id: int,
    blocks: Callable[[Tier], Sequence[Block]],
    waiting: tuple[Ints, Floats],
    *,
    start_ms: int,
    end_ms: int,
    step_ms: int | None,
) -> Selected | None:
    """The rows of one series between two times, both included; None: there are none.

    Each tier serves what lies before the part that the tiers asked before it serve, up to where one of its own
    stretches begins, so that no sample counts twice.
    """
    parts: list[Rows] = []
    used: set[Tier] = set()
    served_from = 1 << 62
    for tier in tiers_for(step_ms):
        width = max(RESOLUTION_MS[tier], 1)
        spans = [(block, span) for block in blocks(tier) if (span := block.span(series_id)) is not None]
        if not spans:
            continue
        # What begins inside a stretch of this tier is served by the whole stretch, not by its second half.
        limit = -(-served_from // width) * width
        if any(first < limit and last >= limit - width for _, (first, last) in spans):
            parts = [between(part, limit, 1 << 62) for part in parts]
        else:
            limit = served_from
        low = start_ms - start_ms % width
        wanted = [
            block for block, (first, last) in spans if last >= low and first < limit and first <= end_ms
        ]
        found = [
            between(rows, low, min(end_ms, limit - 1)) for block in wanted if (rows := block.rows(series_id))
        ]
        if any(len(rows) for rows in found):
            used.add(tier)
        parts = [*found, *parts]
        served_from = min(served_from, min(first for _, (first, _) in spans))
        if served_from <= start_ms:
            break
    head = between(Rows.of_samples(*waiting), start_ms, end_ms)
    if len(head):
        used.add("raw")
    rows = join([part for part in [*parts, head] if len(part)])
    if not len(rows):
        return None
    if step_ms is not None:
        rows = roll_up(rows, step_ms)
    return Selected(
        series=series, times_ms=rows.times_ms, values=rows.last, minima=rows.minima, maxima=rows.maxima,
        sums=rows.sums, counts=rows.counts, tiers=tuple(tier for tier in TIERS if tier in used),
    )  # fmt: skip
